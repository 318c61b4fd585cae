"""Weights multiplied out, and sizes as the config states them."""

import copy

import pytest
import torch
from tests.compressed_models import compressed
from tests.helpers import ORDINARY, logits, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM

import spqlm
from spqlm.checkpoint.dense import multiply_out, resized, restore_sizes
from spqlm.checkpoint.structure import describe
from spqlm.conversion import export
from spqlm.errors import SpqError
from spqlm.model.view import ModelView
from spqlm.modules.ops import dense_weight
from spqlm.recipe import Recipe

CUT = {"minimum": 0.3, "maximum": 0.6, "modules": ["mlp", "attention"], "multiple_of": 16}


def cut(family):
    """Neurons and heads gone, int8."""
    calibration = {"source": "builtin", "windows": 2, "context": 16}
    stages = [{"prune": CUT}, {"quantize": {"mode": "per_channel"}}]
    recipe = Recipe.from_dict({"calibration": calibration, "stages": stages})
    # Of four groups the layers keep three and two; were they alike, the config would say so.
    model = tiny_model(family, num_key_value_heads=4)
    return ModelView(spqlm.compress(model, recipe=recipe, tokenizer=tiny_tokenizer()).model)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_weight_multiplied_out_is_what_its_codes_stand_for(tied):
    view = ModelView(copy.deepcopy(compressed("int8", tied)))
    names = [view.embedding.name, view.layers[0].query.name]
    stored = {name: dense_weight(view.module(name)) for name in names}
    multiply_out(view, names)
    for name in names:
        assert torch.equal(view.module(name).weight, stored[name])
    assert view.tied == tied
    assert (view.lm_head.name in describe(view.model)) == (not tied)


@pytest.mark.parametrize("family", ORDINARY)
def test_what_was_cut_comes_back_as_zeros_that_add_nothing(family):
    view = cut(family)
    before, missing = logits(view.model), resized(view.model)
    assert {name.rpartition(".")[2] for name in missing} >= {"q_proj", "v_proj"}
    outer = {view.embedding.name, view.lm_head.name}
    multiply_out(view, outer & set(describe(view.model)))
    restore_sizes(view)
    assert describe(view.model) == {}
    for name, shape in missing.items():
        assert tuple(view.module(name).weight.shape) == shape
    assert torch.allclose(logits(view.model), before, atol=1e-4)


def test_a_factor_is_not_taken_for_a_layer_that_was_cut():
    assert resized(compressed("low_rank", False)) == {}


def test_a_mixture_goes_back_to_transformers_own_layout(tmp_path):
    model = tiny_model("qwen3_moe")
    spqlm.compress(model, tmp_path / "out", recipe="int8", tokenizer=tiny_tokenizer())
    export(tmp_path / "out", "dense", tmp_path / "dense")
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    assert dense.model.layers[0].mlp.experts.down_proj.shape == (4, 64, 32)
    torch.testing.assert_close(logits(dense), logits(model), rtol=1e-4, atol=1e-4)
    with pytest.raises(SpqError, match="no layout for the experts of 'qwen3_moe'"):
        export(tmp_path / "out", "compressed-tensors", tmp_path / "other")
