"""A config states the sizes that all layers share."""

import json

import pytest
import torch
from tests.compressed_models import load, without_the_package
from tests.helpers import ORDINARY, greedy, logits, tiny_model
from tests.targets.gguf_files import cut

from spqlm.checkpoint.dense import resized
from spqlm.checkpoint.quantizer import attach
from spqlm.checkpoint.stated_sizes import state_sizes, stating
from spqlm.checkpoint.structure import describe
from spqlm.model.view import ModelView


def cut_everywhere(model_type, **options):
    view = ModelView(tiny_model(model_type, **options))
    cut(view, *view.layers)
    return view


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("stated")


@pytest.mark.parametrize("model_type", ORDINARY)
def test_layers_that_were_cut_alike_make_an_ordinary_smaller_model(model_type, place):
    view = cut_everywhere(model_type)
    before, words = logits(view.model), greedy(view.model)
    state_sizes(view)
    assert logits(view.model).equal(before) and greedy(view.model) == words
    config = view.model.config
    # The heads of OPT would become wider, were there fewer of them.
    own = model_type != "opt"
    assert getattr(config, view.family.mlp.size) == 64
    assert config.num_attention_heads == (2 if own else 4)
    assert bool(describe(view.model)) is not own
    attach(view.model)
    view.model.save_pretrained(place / model_type)
    loaded = load(place / model_type)
    assert logits(loaded).equal(before) and greedy(loaded) == words
    stated = json.loads((place / model_type / "config.json").read_text())
    assert ("quantization_config" in stated) is not own


def test_it_loads_without_the_package(place):
    models = {}
    for model_type in ("llama", "gemma3_text", "qwen2"):
        view = cut_everywhere(model_type)
        state_sizes(view)
        view.model.save_pretrained(place / f"plain-{model_type}")
        models[str(place / f"plain-{model_type}")] = "loaded"
    assert without_the_package([*models]) == models


def test_layers_that_differ_are_left_to_the_checkpoint():
    view = ModelView(tiny_model())
    cut(view, view.layers[0])
    missing = resized(view.model)
    state_sizes(view)
    assert view.model.config.intermediate_size == 128
    assert missing and resized(view.model) == missing


def test_one_kind_of_block_is_stated_without_the_other():
    view = cut_everywhere("llama")
    state_sizes(view)
    cut(view, view.layers[1])
    view.model.config.intermediate_size = 128
    state_sizes(view)
    assert view.model.config.intermediate_size == 128
    assert view.model.config.num_key_value_heads == 1
    assert {"mlp" in name for name in resized(view.model)} == {True, False}


def test_a_model_that_was_not_cut_keeps_its_config():
    view = ModelView(tiny_model("qwen2"))
    before = view.model.config.to_dict()
    state_sizes(view)
    assert view.model.config.to_dict() == before


@pytest.mark.parametrize("heads", [12, 5])
def test_heads_that_the_class_refuses_are_not_stated(heads):
    view = ModelView(
        tiny_model(num_attention_heads=16, num_key_value_heads=16, head_dim=4, hidden_size=64)
    )
    assert stating(view, "attention", heads) is None
    assert view.model.config.num_attention_heads == 16


def test_what_is_stated_is_what_the_class_builds():
    view = ModelView(tiny_model())
    assert stating(view, "mlp", 72) == {"intermediate_size": 72}
    fields = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    assert stating(view, "attention", 1) == fields
    assert torch.equal(logits(view.model), logits(tiny_model()))
