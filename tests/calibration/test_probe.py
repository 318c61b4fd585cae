"""What text shows of a model is known before any stage is done."""

import pytest
import torch
from tests.helpers import TEXT, logits, tiny_model, tiny_tokenizer

import spqlm
from spqlm.errors import SpqError
from spqlm.model.soundness import check_runs
from spqlm.model.view import ModelView


def steep():
    """Small states before a norm of large weights: logits are finite, gradients are not."""
    model = tiny_model(dtype=torch.float16, tie_word_embeddings=False)
    model.model.norm.weight.data.fill_(3e3)
    for name, parameter in model.named_parameters():
        if name.endswith(("embed_tokens.weight", "o_proj.weight", "down_proj.weight")):
            parameter.data *= 1e-3
    return model


def huge_inputs():
    """Finite in every layer, but the square of what enters one projection is not."""
    model = tiny_model("qwen2")
    attention = model.model.layers[1].self_attn
    attention.v_proj.bias.data.fill_(1e20)
    attention.o_proj.weight.data *= 1e-20
    return model


FIRST = {"svd": {"modules": ["mlp"], "variance": 0.5, "multiple_of": 8}}
LATE = {
    "prune": {"multiple_of": 8},
    "mask": {},
    "factorize": {},
    "smooth": {},
    "sparsify": {},
    "budget": {"target_bytes": 95_000},
}


@pytest.mark.parametrize("stage", LATE)
def test_inputs_that_cannot_be_squared_are_refused_before_any_stage(stage, tmp_path, caplog):
    caplog.set_level("INFO", logger="spqlm")
    with pytest.raises(SpqError, match=r"'model\.layers\.1\.self_attn\.o_proj'.* square is not"):
        compress(huge_inputs(), tmp_path, FIRST, {stage: LATE[stage]})
    assert "svd: " not in caplog.text


@pytest.mark.parametrize("stage", ["sparsify", "budget", "distill", "recover"])
def test_gradients_that_are_not_finite_are_refused_before_any_stage(stage, tmp_path, caplog):
    caplog.set_level("INFO", logger="spqlm")
    with pytest.raises(SpqError, match=r"gradients at '.*' are not finite in float16.*--dtype"):
        compress(steep(), tmp_path, FIRST, {stage: LATE.get(stage, {"context": 16})})
    assert "svd: " not in caplog.text


def overflowing_at(letter):
    """A model of which one token alone has a first channel, which is too much."""
    model = tiny_model(dtype=torch.float16)
    letter = tiny_tokenizer()(letter, add_special_tokens=False)["input_ids"][0]
    first = model.model.layers[0]
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 0
        model.model.embed_tokens.weight[letter] = 0
        model.model.embed_tokens.weight[letter, 0] = 1
        first.self_attn.o_proj.weight[0] = 0
        first.mlp.up_proj.weight[:, 0] = 6e4
    return model


def test_what_the_text_makes_of_a_model_counts(tmp_path):
    model = overflowing_at("q")
    check_runs(ModelView(model))
    with pytest.raises(SpqError, match=r"not finite in float16.*--dtype float32"):
        compress(model, tmp_path, FIRST, {"prune": {"multiple_of": 8}})


@pytest.mark.parametrize("stage", ["mask", "factorize", "smooth", "prune"])
def test_in_float16_all_that_is_observed_is_tried(stage, tmp_path, caplog):
    caplog.set_level("INFO", logger="spqlm")
    model, text = overflowing_at("q"), "a" * 300 + "q" * 300
    with pytest.raises(SpqError, match=r"not finite in float16.*--dtype float32"):
        compress(model, tmp_path, FIRST, {stage: LATE[stage]}, text=text)
    assert "svd: " not in caplog.text


def test_a_sound_model_passes_with_every_stage(tmp_path):
    model = compress(tiny_model(), tmp_path, FIRST, {"prune": {"multiple_of": 8}}, "quantize")
    assert bool(torch.isfinite(logits(model)).all())


def compress(model, folder, *stages, text=TEXT):
    file = folder / "text.txt"
    file.write_text(text)
    calibration = {"source": str(file), "windows": 8, "context": 32}
    recipe = spqlm.Recipe.from_dict({"stages": list(stages), "calibration": calibration})
    return spqlm.compress(model, recipe=recipe, tokenizer=tiny_tokenizer()).model
