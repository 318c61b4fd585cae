"""Distillation: what it gains, and what it leaves alone."""

import copy

import pytest
import torch
from pydantic import ValidationError
from tests.helpers import format_of, greedy, logits, tiny_model, tiny_tokenizer
from tests.stages.distilling import FAMILIES, SHORT, codes_of, compressed, divergence, ids, tune

import spqlm
from spqlm.cache import RunState
from spqlm.changes import Plan
from spqlm.errors import SpqError
from spqlm.formats.int2 import Int2
from spqlm.formats.int3 import Int3
from spqlm.formats.int4 import Int4
from spqlm.formats.int8 import Int8
from spqlm.model.view import ModelView
from spqlm.modules.linear import Compressed
from spqlm.numerics.integer import round_scale
from spqlm.recipe import Recipe
from spqlm.stages import distill
from spqlm.stages.base import Inputs
from spqlm.stages.budget import Budget
from spqlm.stages.distill import Distill


@pytest.mark.parametrize("model_type", FAMILIES)
def test_it_brings_the_model_nearer_to_the_dense_one_and_leaves_the_codes(model_type):
    dense, view = compressed(model_type)
    before = divergence(dense, view.model)
    codes = codes_of(view.model)
    tune(view, dense, steps=40, learning_rate=1e-3, check_every=10, held_out=8)
    # Random weights have little in them that scales could bring back.
    assert divergence(dense, view.model) < 0.99 * before
    for name, kept in codes.items():
        assert torch.equal(view.module(name).codes, kept)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_codes_bring_more_back_and_stay_codes(model_type):
    distances = {}
    for parameters in ("all", "codes"):
        dense, view = compressed(model_type)
        types = {name: type(module) for name, module in view.model.named_modules()}
        before = {
            n: m.codes.clone() for n, m in view.model.named_modules() if isinstance(m, Compressed)
        }
        # Codes have half a step to go before the first ones change.
        tune(view, dense, steps=100, parameters=parameters, check_every=10, held_out=8)
        distances[parameters] = divergence(dense, view.model)
        changed = [
            not torch.equal(before[name], module.codes)
            for name, module in view.model.named_modules()
            if isinstance(format_of(module), Int4)
        ]
        assert any(changed) == (parameters == "codes")
        assert {name: type(module) for name, module in view.model.named_modules()} == types
    assert distances["codes"] < distances["all"]


def test_codes_of_three_bits_are_trained_too():
    dense = tiny_model()
    view, form = ModelView(copy.deepcopy(dense)), Int3(group_size=32)
    stage = Budget(formats=(form,), embedding_formats=(Int8(),), rounding="nearest")
    stage.apply(view, stage.plan(view, None))
    before, codes = divergence(dense, view.model), codes_of(view.model)
    how = {"steps": 40, "check_every": 10, "held_out": 8, "code_rate": 0.03}
    tune(view, dense, **how, parameters="codes", most_bits=3)
    assert divergence(dense, view.model) < before
    assert {format_of(leaf.module) for leaf in view.leaves(("attention", "mlp"))} == {form}
    assert any(not torch.equal(view.module(name).codes, kept) for name, kept in codes.items())


def test_codes_that_start_where_the_dense_weights_lie_change_at_a_small_rate():
    how = {"parameters": "codes", "steps": 40, "check_every": 10, "held_out": 16}
    changed, losses = {}, {}
    for start in ("codes", "dense_model"):
        dense, view = compressed()
        before, codes = divergence(dense, view.model), codes_of(view.model)
        # Forty steps of this are less than the half code that is between a code and the next cell.
        tune(view, dense, **how, code_rate=0.005, code_start=start)
        losses[start] = divergence(dense, view.model)
        found = [torch.equal(view.module(name).codes, kept) for name, kept in codes.items()]
        changed[start] = not all(found)
    assert changed == {"codes": False, "dense_model": True}
    assert losses["dense_model"] < losses["codes"] < before


def test_only_the_dense_model_says_where_its_weights_lie():
    with pytest.raises(ValidationError, match="needs the objective dense_model"):
        Distill(objective="next_token", code_start="dense_model")


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_codes_of_the_vocabulary_are_trained_and_stay_tied(model_type, tied, caplog):
    dense = tiny_model(model_type, tie_word_embeddings=tied)
    view, form = ModelView(copy.deepcopy(dense)), Int2(group_size=32)
    stage = Budget(formats=(Int8(),), embedding_formats=(form,), rounding="nearest")
    stage.apply(view, stage.plan(view, None))
    codes = codes_of(view.model)
    how = {"steps": 40, "check_every": 10, "held_out": 16, "code_rate": 0.01, "batch_size": 4}
    how["code_start"] = "dense_model"
    with caplog.at_level("INFO"):
        tune(view, dense, **how, parameters="codes", most_bits=4)
    [losses] = [record.args for record in caplog.records if "before" in record.msg]
    assert losses[1] < losses[0]
    assert view.tied == tied
    for name, kept in codes.items():
        narrow = name in (view.embedding.name, view.lm_head.name)
        assert torch.equal(view.module(name).codes, kept) != narrow
    assert greedy(view.model)


@pytest.mark.parametrize("parameters", ["all", "codes"])
def test_after_an_error_the_best_state_is_there(monkeypatch, parameters):
    fields = {"parameters": parameters, "check_every": 4, "held_out": 8}
    dense, expected = compressed()
    before = copy.deepcopy(expected.model.state_dict())
    tune(expected, dense, steps=4, **fields)
    state = expected.model.state_dict()
    assert not all(torch.equal(value, before[name]) for name, value in state.items())
    dense, view = compressed()
    # Rates fall over all steps: here the first four are those of the run above, and one goes on.
    inner = distill.Masters.step

    def step(self, *rates):
        calls.append(rates)
        if len(calls) > 5:
            raise SpqError("stopped")
        left = 1 - (len(calls) - 1) / 4 if len(calls) < 5 else 1.0
        inner(self, *(left * peak for peak in calls[0]))

    calls: list[tuple[float, ...]] = []
    monkeypatch.setattr(distill.Masters, "step", step)
    with pytest.raises(SpqError, match="stopped"):
        tune(view, dense, steps=8, **fields)
    assert all(torch.equal(value, state[name]) for name, value in view.model.state_dict().items())


def test_after_an_error_codes_are_those_from_before():
    dense, view = compressed()
    before = copy.deepcopy(view.model.state_dict())
    with torch.no_grad():
        ModelView(dense).layers[0].query.module.weight[0, 0] = torch.nan
    with pytest.raises(SpqError, match="loss is nan"):
        tune(view, dense, parameters="codes")
    assert all(torch.equal(value, before[name]) for name, value in view.model.state_dict().items())


def test_the_dense_model_and_every_flag_are_left_alone():
    dense, view = compressed()
    expected = copy.deepcopy(dense.state_dict())
    flags = {name: p.requires_grad for name, p in view.model.named_parameters()}
    tune(view, dense)
    assert all(torch.equal(value, expected[name]) for name, value in dense.state_dict().items())
    assert {name: p.requires_grad for name, p in view.model.named_parameters()} == flags
    assert all(p.grad is None for p in view.model.parameters())


def test_a_rate_that_ruins_the_model_gives_back_what_it_got():
    dense, view = compressed()
    before = copy.deepcopy(view.model.state_dict())
    tune(view, dense, learning_rate=3.0, check_every=8)
    assert all(torch.equal(value, before[name]) for name, value in view.model.state_dict().items())


def test_the_rate_follows_the_root_of_what_there_is_to_gain(monkeypatch):
    seen = []
    inner = distill.Masters.step

    def step(self, rate, code_rate):
        seen.append((rate, code_rate))
        inner(self, rate, code_rate)

    monkeypatch.setattr(distill.Masters, "step", step)
    for how in ({"formats": (Int4(group_size=32),)}, {"formats": (Int2(group_size=32),)}):
        dense = tiny_model()
        view = ModelView(copy.deepcopy(dense))
        stage = Budget(**how, embedding_formats=(Int8(),), rounding="nearest")
        stage.apply(view, stage.plan(view, None))
        tuned = Distill(**SHORT | {"steps": 2})
        _, held_out = tuned._windows(view, Inputs(ids=ids(), dense=dense))
        before = distill._mean_loss(view.model, dense, held_out)
        tuned.apply(view, Plan(stage="distill"), Inputs(ids=ids(), dense=dense))
        # Down to nothing behind the last step; positions between codes have a rate of their own.
        peak = distill.OF_ROOT * before**0.5
        assert seen[-2:] == [(peak, tuned.code_rate), (0.5 * peak, 0.5 * tuned.code_rate)]
    assert seen[0] < seen[2]
    tune(view, dense, steps=1, objective="next_token")
    tune(view, dense, steps=1, learning_rate=0.25)
    assert [rate for rate, _ in seen[-2:]] == [distill.USUAL, 0.25]


def test_training_that_gains_nothing_ends_early_and_is_not_taken_up_again(monkeypatch, caplog):
    counted = []
    inner = distill.Masters.step
    monkeypatch.setattr(
        distill.Masters, "step", lambda self, *rates: (counted.append(rates), inner(self, *rates))
    )
    stage = Distill(**SHORT | {"check_every": 1}, learning_rate=10.0, patience=3)
    for _ in range(2):
        dense, view = compressed()
        before = copy.deepcopy(view.model.state_dict())
        with caplog.at_level("INFO"):
            stage.apply(view, Plan(stage="distill"), Inputs(ids=ids(), dense=dense, run=RunState()))
        assert all(torch.equal(v, before[name]) for name, v in view.model.state_dict().items())
    assert len(counted) == 3
    assert caplog.text.count("nothing gained since 3 looks") == 1


def test_nothing_is_trained_where_there_is_nothing_to_gain():
    dense, view = compressed()
    before = copy.deepcopy(view.model.state_dict())
    tune(view, dense, worthwhile=1e3)
    assert all(torch.equal(value, before[name]) for name, value in view.model.state_dict().items())


def test_scales_stay_exact_in_every_float_type():
    dense, view = compressed()
    tune(view, dense, learning_rate=5e-3)
    for module in view.model.modules():
        if isinstance(module, Compressed):
            scale = module.scale.float()
            assert torch.equal(round_scale(scale), scale)
            assert torch.equal(scale.half().float(), scale)


def test_the_same_seed_gives_the_same_model():
    results = []
    for _ in range(2):
        dense, view = compressed()
        tune(view, dense)
        results.append(logits(view.model))
    assert torch.equal(*results)


@pytest.mark.parametrize("inputs", [Inputs(), Inputs(ids=ids())])
def test_text_and_the_dense_model_are_asked_for(inputs):
    _, view = compressed()
    with pytest.raises(SpqError, match="needs calibration text and the dense model"):
        Distill(**SHORT).apply(view, Plan(stage="distill"), inputs)


def test_in_a_recipe_it_sees_the_model_from_before_the_first_stage(tmp_path, text_file):
    model = tiny_model()
    dense = copy.deepcopy(model)
    stages = [
        {"budget": {"formats": [{"int4": {"group_size": 32}}], "embedding_formats": ["int8"]}},
        {"distill": SHORT | {"learning_rate": 5e-3}},
    ]
    calibration = {"source": str(text_file), "windows": 4, "context": 24}
    recipe = Recipe.from_dict({"calibration": calibration, "stages": stages})
    tokenizer = tiny_tokenizer()
    rounded = spqlm.compress(
        copy.deepcopy(model), recipe=recipe, tokenizer=tokenizer, recover=False
    )
    tuned = spqlm.compress(model, tmp_path / "out", recipe=recipe, tokenizer=tokenizer)
    assert divergence(dense, tuned.model) != divergence(dense, rounded.model)
    assert greedy(spqlm.load(tmp_path / "out")) == greedy(tuned.model)


def test_it_says_beforehand_how_long_it_takes(caplog):
    dense, view = compressed()
    with caplog.at_level("INFO"):
        tune(view, dense, worthwhile=0)
    told = [record for record in caplog.records if "steps in about" in record.getMessage()]
    first_look = next(r for r in caplog.records if "held-out loss" in r.getMessage())
    assert len(told) == 1 and told[0].created <= first_look.created
