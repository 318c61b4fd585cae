"""Whole layers that go: what that is said to cost, and that a budget takes them."""

import pytest
import torch
from tests.helpers import calibrated, logits, tiny_model, tiny_tokenizer
from tests.profiles import profile_of
from tests.stages.budgets import BOTH, FOUR, INT4, compress, predicted
from transformers import AutoModelForCausalLM

import spqlm
from spqlm.allocation.left_out import layers_left_out
from spqlm.allocation.limits import Limits
from spqlm.allocation.search import alternatives, hopes
from spqlm.cache import cache_directory
from spqlm.errors import OutOfReach
from spqlm.formats.dense import Dense
from spqlm.formats.int8 import Int8
from spqlm.layerwise.walk import evaluating
from spqlm.model.extent import Extent
from spqlm.model.shortened import leave_out
from spqlm.model.view import ModelView
from spqlm.numerics.knapsack import choose
from spqlm.report.layers import layers
from spqlm.stages.base import Inputs
from spqlm.stages.budget import Budget

INT8 = {"formats": ["int8"], "embedding_formats": ["int8"]}
WINDOWS = torch.randint(3, 250, (3, 32), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def uneven(model_type="llama", **options):
    """Four layers, of which the second and third hardly do anything."""
    model = tiny_model(model_type, num_hidden_layers=4, **options)
    for layer, share in zip(ModelView(model).layers, (1.0, 0.02, 0.05, 1.0), strict=True):
        for named in (layer.attention_output, layer.mlp_output):
            named.module.weight.mul_(share)
    return model


def stage_for(model, left_out=2, limits=None, **fields) -> Budget:
    limits = limits or {}
    if {"decode", "prefill"} & limits.keys():
        limits = {**limits, "profile": profile_of(model, INT4, Int8()), "context": 16}
    fields = BOTH | {"rounding": "nearest", "left_out": left_out} | fields
    return Budget(limits=Limits(**limits), **fields)


def planned(stage, model):
    view, statistics = ModelView(model), calibrated(model)
    stage.savings(view)
    return stage.plan(view, statistics), statistics


@torch.no_grad()
def divergence(names) -> float:
    """KL(model ‖ model without the layers called so), by its definition."""
    whole, rest = uneven(), uneven()
    leave_out(ModelView(rest), names)
    with evaluating(whole), evaluating(rest):
        p, q = (m(input_ids=WINDOWS[:2]).logits.double().softmax(-1) for m in (whole, rest))
    return float((p * (p / q).log()).sum(-1).mean())


def test_layers_go_in_the_order_of_what_they_cost_behind_one_another():
    second, third = "model.layers.1", "model.layers.2"
    found = layers_left_out(ModelView(uneven()), WINDOWS, 2)
    assert list(found) == [second, third]
    one, both = divergence([second]), divergence([second, third])
    assert found[second] == pytest.approx(one, rel=1e-3)
    assert found[third] == pytest.approx(both - one, rel=1e-3)
    assert one < divergence([third])


def test_one_layer_stays_and_no_price_is_below_the_one_before():
    prices = [*layers_left_out(ModelView(uneven()), WINDOWS, 99).values()]
    assert len(prices) == 3 and prices == sorted(prices)
    assert layers_left_out(ModelView(uneven()), WINDOWS, 0) == {}


def test_what_was_measured_is_not_measured_again(monkeypatch):
    model = uneven()
    first = layers_left_out(ModelView(model), WINDOWS, 2)
    [file] = cache_directory().glob("left-out-*")
    monkeypatch.setattr("spqlm.allocation.left_out._Measured._predictions", None)
    assert layers_left_out(ModelView(model), WINDOWS, 2) == first
    file.write_text("[1]")
    with pytest.raises(TypeError):
        layers_left_out(ModelView(model), WINDOWS, 2)


@pytest.mark.parametrize(
    ("fields", "limits"),
    [
        ({"target_bytes": 130_000}, {}),
        ({}, {"decode": "5x"}),
        ({}, {"prefill": "1.6x"}),
        ({}, {"kv": 0.5}),
        ({"alike": "fused"}, {"kv": 0.5}),
        ({"alike": "uniform"}, {"kv": 0.75}),
        ({"even_cuts": True, "widths": (0.75,), "key_value_groups": (0.5,)}, {"prefill": "1.9x"}),
    ],
    ids=str,
)
def test_a_budget_leaves_layers_out(fields, limits):
    model = uneven()
    plan, statistics = planned(stage_for(model, limits=limits, **fields), model)
    assert plan.left_out and set(plan.left_out) <= {"model.layers.1", "model.layers.2"}
    assert f"{len(plan.left_out)} layers left out" in plan.summary
    before = Extent.of(ModelView(model))
    stage_for(model, limits=limits, **fields).apply(ModelView(model), plan, Inputs(statistics))
    after = Extent.of(ModelView(model))
    assert after.layers == before.layers - len(plan.left_out)
    for found in plan.spent:
        assert found.used <= found.most * (1 + 1e-9)
        if found.name == "cache of a token":
            assert found.used == pytest.approx(found.dense * after.groups / before.groups)
    if fields.get("alike") == "uniform":
        assert len({c.stored_as for c in plan.changes if "layers" in c.module and c.format}) == 1
    if fields.get("even_cuts"):
        assert len({layer.units("mlp") for layer in ModelView(model).layers}) == 1
    # What is planned for weights is found where it was planned for.
    assert all(ModelView(model).module(c.module) for c in plan.changes if not c.left_out)


def test_layers_that_are_worth_their_bytes_stay():
    model = uneven()
    plan, _ = planned(stage_for(model, target_bytes=10**9), model)
    assert not plan.left_out
    lean, _ = planned(stage_for(model, limits={"kv": 0.5}), model)
    prices = layers_left_out(ModelView(model), calibrated(model).windows, 2)
    gone = [change for change in lean.changes if change.left_out]
    assert {c.module: c.predicted_loss for c in gone} == pytest.approx(prices)
    assert predicted(lean) >= sum(prices.values())
    assert all(change.bytes_after == 0 and change.bytes_before > 0 for change in gone)


def test_no_more_layers_go_than_were_allowed():
    model = uneven()
    with pytest.raises(OutOfReach, match=r"cache of a token of .* cannot be reached; the least"):
        stage_for(model, left_out=1, limits={"kv": 0.5}).savings(ModelView(model))
    stage_for(model, left_out=2, limits={"kv": 0.5}).savings(ModelView(model))


def test_the_result_is_an_ordinary_model_of_fewer_layers(text_file, tmp_path):
    stage = {"budget": {"left_out": 2, "limits": {"kv": 0.5}, **INT8}}
    out = tmp_path / "out"
    made = compress(uneven(), text_file, out, (stage,))
    loaded = spqlm.load(out)
    assert loaded.config.num_hidden_layers == 2
    assert torch.equal(logits(loaded), logits(made.model))
    rows = {row.module: row.predicted_loss for row in layers(out)}
    last = "model.layers.1.mlp.up_proj"
    assert rows[last] is not None and not any(".layers.2." in name for name in rows)
    spqlm.export(out, "dense", tmp_path / "plain")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    torch.testing.assert_close(logits(plain), logits(loaded), rtol=1e-4, atol=1e-4)


def test_everything_in_four_bits_is_not_smaller_than_with_layers_out():
    model = uneven()
    least = [stage_for(model, left_out=n, **FOUR).savings(ModelView(model))[1] for n in (0, 2)]
    assert least[1] > least[0]


def test_what_goes_best_beside_a_layer_is_priced():
    model = uneven(intermediate_size=256)
    view, statistics = ModelView(model), calibrated(model)
    sizes = {"widths": (0.9, 0.8, 0.7, 0.6), "key_value_groups": (0.5,), "multiple_of": 8}
    fields = {"formats": (Dense(),), "embedding_formats": (Dense(),), **sizes}
    for speed in ("1.15x", "1.35x", "1.45x"):
        stage = stage_for(model, limits={"prefill": speed}, **fields)
        [target] = stage.targets(view)
        search = stage.search(view, statistics)
        units = search.units()
        decided = [part.named for unit in units for part in unit.priced[0].parts]
        available = target.limit(view, decided).available
        search.spend(units, available)
        options = [alternatives(unit) for unit in units]
        # Nothing is rounded, so that estimates are prices.
        every = [hopes(unit) for unit in units]
        found, best = (loss_of(held, choose(held, available)) for held in (options, every))
        assert found <= best * 1.001


def loss_of(options, taken) -> float:
    return sum(unit[choice.alternative].loss for unit, choice in zip(options, taken, strict=True))


def test_what_remains_is_distilled_towards_the_whole_model(text_file):
    stage = {"budget": {"left_out": 2, "limits": {"kv": 0.5}, **INT8}}
    tuned = {"distill": {"steps": 40, "context": 24, "held_out": 4, "check_every": 10}}
    text = tiny_tokenizer()(text_file.read_text()[:200], return_tensors="pt").input_ids

    def predictions(model):
        with torch.no_grad():
            return model(input_ids=text).logits.double().log_softmax(-1)

    whole = predictions(tiny_model(num_hidden_layers=4))
    losses = []
    for stages in ((stage,), (stage, tuned)):
        made = compress(tiny_model(num_hidden_layers=4), text_file, stages=stages)
        found = predictions(made.model)
        losses.append(float((whole.exp() * (whole - found)).sum(-1).mean()))
    assert losses[1] < 0.98 * losses[0]
