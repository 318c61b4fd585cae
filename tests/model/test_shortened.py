"""Decoders with fewer layers."""

import pytest
import torch
from tests.helpers import logits, tiny_model
from transformers import AutoModelForCausalLM

from spqlm.errors import SpqError
from spqlm.model.shortened import check_shorter, leave_out, passed_by, renumbered
from spqlm.model.view import ModelView

FAMILIES = ["llama", "qwen2", "gemma3_text", "opt", "gpt_neox", "phi3", "mixtral", "cohere2"]


def three_layers(model_type):
    return tiny_model(model_type, num_hidden_layers=3)


def middle(model):
    return [ModelView(model).layers[1].name]


@pytest.mark.parametrize("model_type", FAMILIES)
def test_what_stays_computes_what_it_did_behind_a_layer_that_is_passed_by(model_type, tmp_path):
    model = three_layers(model_type)
    view, gone = ModelView(model), middle(model)
    check_shorter(view, gone)
    whole = logits(model)
    with passed_by(view, gone):
        wanted = logits(model)
    assert torch.equal(logits(model), whole) and not torch.equal(wanted, whole)
    leave_out(view, gone)
    assert torch.equal(logits(model), wanted)
    assert model.config.num_hidden_layers == 2
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded), wanted)
    # Layers know their place in the cache.
    ids = torch.arange(3, 9)[None]
    found = loaded.generate(ids, max_new_tokens=4, do_sample=False, use_cache=True)
    slow = loaded.generate(ids, max_new_tokens=4, do_sample=False, use_cache=False)
    assert torch.equal(found, slow)


def test_layers_are_counted_anew():
    view = ModelView(three_layers("llama"))
    first, _, last = (layer.name for layer in view.layers)
    assert renumbered(view, middle(view.model)) == {first: first, last: "model.layers.1"}


def test_lists_of_the_config_lose_what_they_state_of_the_layer():
    kinds = ["full_attention", "sliding_attention", "full_attention"]
    model = tiny_model("gemma3_text", num_hidden_layers=3, layer_types=kinds)
    leave_out(ModelView(model), middle(model))
    assert model.config.layer_types == ["full_attention", "full_attention"]


def test_what_a_config_cannot_state_is_refused(monkeypatch):
    model = three_layers("llama")
    monkeypatch.setattr("spqlm.model.shortened._fields", lambda *_: {"num_hidden_layers": 1})
    with pytest.raises(SpqError, match=r"layers of 'llama' cannot be left out.*left_out: 0"):
        check_shorter(ModelView(model), middle(model))
