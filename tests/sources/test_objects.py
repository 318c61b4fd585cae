import contextlib

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.helpers import logits, tiny_model
from torch import nn

import spqlm
from spqlm.errors import SpqError
from spqlm.sources.load import load_model


def _adapted():
    return get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["q_proj"]))


def _with_adapter():
    model = tiny_model()
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]))
    return model


def _offloaded():
    from accelerate import cpu_offload

    model = tiny_model()
    cpu_offload(model, execution_device=torch.device("cpu"))
    return model


def _on_meta():
    return tiny_model().to("meta")


def _tied_by_hand():
    model = tiny_model()
    model.lm_head.weight = model.model.embed_tokens.weight
    return model


def _one_layer_twice():
    model = tiny_model()
    model.model.layers[1] = model.model.layers[0]
    return model


def _mixed():
    model = tiny_model(dtype=torch.bfloat16)
    model.model.norm.float()
    return model


def _other_frequencies():
    model = tiny_model()
    model.model.rotary_emb.original_inv_freq *= 2
    return model


REFUSED = {
    "peft": (_adapted, r"holds an adapter; pass model.merge_and_unload\(\)"),
    "add_adapter": (_with_adapter, "carries an adapter"),
    "compiled": (lambda: torch.compile(tiny_model()), "pass model._orig_mod"),
    "data parallel": (lambda: nn.DataParallel(tiny_model()), "pass model.module"),
    "another module": (lambda: nn.Linear(2, 2), "Linear is not a transformers model"),
    "offloaded": (_offloaded, "is not in memory"),
    "meta": (_on_meta, "is not in memory"),
    "tied by hand": (_tied_by_hand, "'lm_head.weight' are one tensor.*tie_word_embeddings"),
    "one layer twice": (_one_layer_twice, "are one tensor"),
    "mixed dtypes": (_mixed, "'model.norm.weight' is float32 in a model of bfloat16"),
    "other frequencies": (_other_frequencies, "frequencies are not those of its config"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_objects_that_cannot_be_saved_are_refused_before_any_work(kind):
    make, message = REFUSED[kind]
    with pytest.raises(SpqError, match=message):
        load_model(make())


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])
@pytest.mark.parametrize("cast", [lambda m: m.half(), lambda m: m.to(torch.bfloat16)])
def test_a_cast_object_is_the_model_that_loads_in_that_dtype(tmp_path, model_type, cast):
    tiny_model(model_type).save_pretrained(tmp_path)
    model = cast(spqlm.load(tmp_path))
    loaded = load_model(model).model
    assert loaded is model
    assert torch.equal(logits(loaded), logits(spqlm.load(tmp_path, dtype=model.dtype)))


def test_a_cast_object_is_compressed_and_saved(tmp_path, model):
    spqlm.compress(model.half(), tmp_path / "out", recipe="int8")


def test_frequencies_that_follow_the_length_are_no_fault():
    factors = [1.0] * 4 + [4.0] * 4
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 8,
        "long_factor": factors,
        "original_max_position_embeddings": 16,
    }
    model = tiny_model(rope_parameters=rope)
    logits(model, 24)  # more than 16: the long ones are in place
    load_model(model)


def test_an_object_made_in_inference_mode_can_be_trained():
    with torch.inference_mode():
        model = tiny_model(tie_word_embeddings=True)
    expected = logits(model)
    loaded = load_model(model).model
    assert torch.equal(logits(loaded), expected)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    with contextlib.suppress(StopIteration):
        assert not next(t for t in loaded.state_dict().values() if t.is_inference())
    loaded(input_ids=torch.arange(5)[None]).logits.sum().backward()
