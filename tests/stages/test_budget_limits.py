"""A budget of time and cache, alone and beside bytes."""

import pytest
import torch
from tests.helpers import calibrated, logits, tiny_model, tiny_tokenizer
from tests.profiles import profile_of
from tests.stages.budgets import BOTH, INT4

import spqlm
from spqlm.allocation.limits import Limits
from spqlm.allocation.resources import Cache
from spqlm.errors import OutOfReach, SpqError
from spqlm.formats.int8 import Int8
from spqlm.formats.low_rank import LowRank
from spqlm.model.extent import Extent
from spqlm.model.memory import resident_bytes
from spqlm.model.view import ModelView
from spqlm.profiling import timed, weights_of
from spqlm.recipe import Recipe
from spqlm.stages.base import Inputs
from spqlm.stages.budget import Budget

RECIPE = Recipe(stages=(Budget(**BOTH, rounding="nearest", multiple_of=8),))


def limited(model, target_bytes=None, **asked) -> Budget:
    """The stage with limits, and with times that follow from the shapes."""
    limits = Limits(context=16, profile=profile_of(model, INT4, Int8()), **asked)
    recipe = timed(RECIPE.limited(limits), ModelView(model))
    [stage] = recipe.stages
    return stage if target_bytes is None else stage.within(target_bytes)


def planned(model, **asked):
    return limited(model, **asked).plan(ModelView(model), calibrated(model))


@pytest.mark.parametrize(
    "asked",
    [
        {"decode": "1.5x"},
        {"prefill": "1.3x"},
        {"kv": 0.5},
        {"decode": "2x", "prefill": "1.2x", "kv": 0.5, "target_bytes": 120_000},
    ],
    ids=lambda asked: " ".join(asked),
)
def test_what_was_predicted_is_what_the_compressed_model_takes(asked):
    model = tiny_model()
    before = Extent.of(ModelView(model)).groups
    stage, view, statistics = limited(model, **asked), ModelView(model), calibrated(model)
    plan = stage.plan(view, statistics)
    stage.apply(view, plan, Inputs(statistics))
    assert torch.isfinite(logits(model)).all()
    profile, taken = stage.limits.profile, {found.name: found for found in plan.spent}
    assert len(taken) == len(asked)
    for found in plan.spent:
        assert found.used <= found.most * (1 + 1e-9)
    for name, kind in (("decode step", "decode"), ("prefill", "prefill")):
        if name in taken:
            seconds = profile.step(weights_of(model), kind, Extent.of(view))
            assert taken[name].used == pytest.approx(1e3 * seconds)
    if "kv" in asked:
        left = Extent.of(view).groups
        assert left == before / 2
        assert taken["cache of a token"].used * 1e3 == Cache.of(view).group * left


def test_arithmetic_is_bought_by_shapes_and_not_by_bits():
    plan = planned(tiny_model(), prefill="1.3x")
    shaped = [c for c in plan.changes if c.cut or isinstance(c.stored_as, LowRank)]
    assert shaped
    # Bytes are not short: nothing is rounded but the head, which reads one token of a prompt.
    inner = [change for change in plan.changes if "layers" in change.module]
    assert {change.stored_as.codes for change in inner} == {"dense"}


def test_more_speed_costs_more():
    speeds = ("1x", "1.2x", "1.4x")
    losses = [planned(tiny_model(), prefill=speed).predicted_loss for speed in speeds]
    assert 0 == losses[0] < losses[1] < losses[2]


def test_it_says_what_more_time_would_save():
    plan = planned(tiny_model(), prefill="1.3x")
    [found] = plan.spent
    assert found.worth > 0
    assert "prefill" in plan.summary and f"would save {found.worth:.4f} nats" in plan.summary


def test_the_worth_is_what_a_little_more_time_saves():
    model = tiny_model()
    first = planned(model, prefill="1.3x")
    [spent] = first.spent
    more = f"{spent.most * 1.02:.9f}ms"
    saved = first.predicted_loss - planned(model, prefill=more).predicted_loss
    # Whole choices jump, so that it is of that size and no more.
    assert saved <= 20 * spent.worth * 0.02 * spent.most + 1e-9


def test_a_speed_out_of_reach_names_the_nearest():
    message = r"a prefill of .* ms \(50.00x\) cannot be reached; the least"
    with pytest.raises(OutOfReach, match=message) as error:
        planned(tiny_model(), prefill="50x")
    nearest = float(str(error.value).rpartition("is ")[2].partition(" ms")[0])
    planned(tiny_model(), prefill=f"{nearest * 1.2 + 0.01:.4f}ms")


def test_targets_that_contradict_each_other_are_named():
    model = tiny_model()
    profile = profile_of(model, INT4, Int8())
    # A format that is small, and slower than floats even where everything is cut.
    slow = tuple(
        p.model_copy(update={"seconds": p.seconds * 100}) if p.format == INT4 else p
        for p in profile.products
    )
    limits = Limits(
        decode="1.05x", kv=1.0, context=16, profile=profile.model_copy(update={"products": slow})
    )
    [stage] = timed(RECIPE.limited(limits), ModelView(model)).stages
    size = resident_bytes(model)
    _, most = stage.within(10 * size).savings(ModelView(model))
    both = stage.within(size - most)
    message = r"size of .* and decode step of .* contradict"
    for refuse in (
        lambda: both.savings(ModelView(model)),
        lambda: both.plan(ModelView(model), calibrated(model)),
    ):
        with pytest.raises(OutOfReach, match=message) as error:
            refuse()
        assert "cache" not in str(error.value).partition("contradict")[0]
        assert "the nearest that can be had together" in str(error.value)


def test_a_cache_whose_parts_are_unknown_is_refused():
    model = tiny_model("phi3")
    with pytest.raises(SpqError, match="it is not known which rows belong"):
        limited(model, kv=0.5).savings(ModelView(model))


@pytest.mark.parametrize("asked", [{"decode": "fast"}, {"prefill": "0x"}, {"decode": "-2x"}])
def test_what_is_no_speed_is_refused(asked):
    with pytest.raises(SpqError, match="is not a speed; write for example 2x, 120tok/s or 8ms"):
        Limits(**asked)


def test_a_recipe_states_limits_and_a_manifest_holds_no_profile():
    stage = {"budget": {"limits": {"prefill": "1.5x", "kv": 0.5}}}
    recipe = Recipe.from_dict({"stages": [stage]})
    assert recipe.stages[0].limits == Limits(prefill="1.5x", kv=0.5)
    given = limited(tiny_model(), decode="2x").model_dump(mode="json")
    assert given["limits"]["decode"] == "2x" and "profile" not in given["limits"]


def test_a_recipe_that_spends_nothing_takes_no_limits():
    with pytest.raises(SpqError, match="needs a recipe with the stage `budget`"):
        spqlm.plan(tiny_model(), recipe="int8", limits=Limits(kv=0.5), tokenizer=tiny_tokenizer())
