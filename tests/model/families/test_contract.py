"""What holds for every family that can be pruned; a new file is tested without being listed."""

import pytest
import torch
from tests.helpers import format_of, greedy, logits, tiny_config, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM

import spqlm
from spqlm.formats.int8 import Int8
from spqlm.model.families import family_for, known
from spqlm.model.memory import resident_bytes, weight_file_bytes
from spqlm.model.view import ModelView
from spqlm.recipe import Recipe

SVD = {"svd": {"variance": 0.6, "multiple_of": 8, "modules": ["attention", "mlp"]}}
PRUNE = {
    "prune": {
        "minimum": 0.25,
        "maximum": 0.5,
        "multiple_of": 8,
        "modules": ["mlp", "attention"],
    }
}
QUANTIZE = {"quantize": {"mode": "by_percentile"}}
RECOVER = {"recover": {"steps": 3, "context": 16, "learning_rate": 1e-3}}
RECIPES = {
    "svd": [SVD],
    "prune": [PRUNE],
    "quantize": [QUANTIZE],
    "recover": [RECOVER],
    "published": [SVD, PRUNE, QUANTIZE, RECOVER],
    "reversed": [RECOVER, QUANTIZE, PRUNE, SVD],
}


# Each layer of these has an MLP and attention whose widths may be cut.
HYBRID = ("glm4_moe", "lfm2", "nemotron_h")
PRUNED = [name for name in known() if len(family_for(name).prunes) == 2 and name not in HYBRID]
# Two projections or three, biases, tied and scaled embeddings.
DIFFERENT = ("llama", "opt", "gemma3_text")


def recipe(name, text_file):
    calibration = {"source": str(text_file), "windows": 2, "context": 32}
    return Recipe.from_dict({"calibration": calibration, "stages": RECIPES[name]})


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("stages", RECIPES)
@pytest.mark.parametrize("model_type", DIFFERENT)
def test_reloads_to_the_same_model(model_type, stages, tied, tmp_path, text_file):
    model = tiny_model(model_type, tie_word_embeddings=tied)
    before = resident_bytes(model)
    result = spqlm.compress(
        model, tmp_path / "out", recipe=recipe(stages, text_file), tokenizer=tiny_tokenizer()
    )
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(reloaded), logits(model))
    assert greedy(reloaded) == greedy(model)
    planned = before - sum(record.plan.bytes_saved for record in result.manifest.stages)
    assert resident_bytes(reloaded) == resident_bytes(model) == planned
    assert result.manifest.sizes.disk == weight_file_bytes(tmp_path / "out")
    assert 0 <= result.manifest.sizes.disk - planned < 16_384  # headers
    assert ModelView(reloaded).tied == tied


@pytest.mark.parametrize("model_type", PRUNED)
def test_every_stage_changes_the_model_where_it_should(model_type, tmp_path, text_file):
    model = tiny_model(model_type)
    result = spqlm.compress(
        model, None, recipe=recipe("published", text_file), tokenizer=tiny_tokenizer()
    )
    svd, prune, quantize, _ = (record.plan for record in result.manifest.stages)
    view = ModelView(result.model)
    assert svd.changes and prune.changes and quantize.changes
    assert all(layer.key_value_groups < 4 for layer in view.layers)
    assert all(layer.intermediate_size < 128 for layer in view.layers)
    assert all(isinstance(format_of(leaf.module), Int8) for leaf in view.leaves())
    assert isinstance(format_of(view.embedding.module), Int8)


@pytest.mark.parametrize("model_type", PRUNED)
def test_config_keeps_the_native_type_and_width(model_type, tmp_path, text_file):
    spqlm.compress(
        tiny_model(model_type),
        tmp_path / "out",
        recipe=recipe("published", text_file),
        tokenizer=tiny_tokenizer(),
    )
    native = tiny_config(model_type)
    saved = type(native).from_pretrained(tmp_path / "out")
    assert saved.model_type == model_type
    assert saved.hidden_size == native.hidden_size
    assert saved.architectures == [type(tiny_model(model_type)).__name__]
