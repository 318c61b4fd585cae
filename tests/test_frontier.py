"""Predicted loss against size."""

import pytest

import spqlm
from spqlm.allocation.limits import Limits
from spqlm.errors import OutOfReach, SpqError
from spqlm.formats.int8 import Int8
from spqlm.frontier import BITS, frontier
from spqlm.recipe import Recipe
from spqlm.report.predicted import draw
from tests.helpers import tiny_model, tiny_tokenizer
from tests.profiles import profile_of
from tests.stages.budgets import INT4


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("SPQ_CACHE_DIR", str(tmp_path))


RECIPE = Recipe.from_dict(
    {
        "calibration": {"source": "builtin", "windows": 4, "context": 32},
        "stages": [
            {
                "budget": {
                    "formats": ["int8", {"int4": {"group_size": 32}}],
                    "embedding_formats": ["int8", {"int4": {"group_size": 32}}],
                }
            }
        ],
    },
    "test",
)


def found(*sizes, **options):
    return frontier(tiny_model(), sizes, recipe=RECIPE, tokenizer=tiny_tokenizer(), **options)


def test_less_space_costs_more():
    points = found(100_000, 120_000, 110_000).points
    assert [point.target for point in points] == [120_000, 110_000, 100_000]
    losses = [point.predicted_loss for point in points]
    assert losses == sorted(losses) and losses[0] < losses[-1]


def test_a_point_is_what_a_plan_predicts():
    [point] = found(110_000).points
    plan = spqlm.plan(
        tiny_model(), recipe=RECIPE, target_size=110_000, tokenizer=tiny_tokenizer()
    ).stages[0]
    assert point.predicted_loss == plan.plan.predicted_loss
    assert point.summary == plan.plan.summary


def test_what_is_out_of_reach_says_what_is_not():
    reached, missed = found(110_000, 1_000).points
    assert reached.predicted_loss is not None
    assert missed.predicted_loss is None and "the smallest with these options" in missed.summary


def test_nothing_within_reach_is_an_error():
    with pytest.raises(SpqError, match="the smallest with these options"):
        found(1_000)
    with pytest.raises(OutOfReach):
        spqlm.plan(tiny_model(), recipe=RECIPE, target_size=1_000, tokenizer=tiny_tokenizer())


def test_sizes_follow_from_the_parameters():
    whole = found()
    assert [round(point.bits, 1) for point in whole.points] == list(BITS)
    assert whole.parameters == sum(p.numel() for p in tiny_model().parameters())


def test_weights_that_must_be_alike_cost_no_less():
    [free], [uniform] = found(110_000).points, found(110_000, alike="uniform").points
    assert uniform.predicted_loss >= free.predicted_loss


def test_a_recipe_that_changes_the_model_first_is_refused():
    recipe = Recipe.from_dict({"stages": [{"svd": {}}, {"budget": {}}]}, "test")
    with pytest.raises(SpqError, match="before it spends bytes"):
        frontier(tiny_model(), [110_000], recipe=recipe, tokenizer=tiny_tokenizer())


# --- speeds --------------------------------------------------------------------------------------


def by_speed(*sizes, **options):
    limits = Limits(context=16, profile=profile_of(tiny_model(), INT4, Int8()))
    return found(*sizes, limits=limits, **options)


def test_more_speed_costs_more_and_sizes_stand_first(tmp_path):
    whole = by_speed(110_000, prefills=["1.1x", "1.3x", "99x"], decodes=["1.5x"])
    assert [point.kind for point in whole.points] == ["size", "decode", *3 * ["prefill"]]
    _, decode, slow, fast, missed = whole.points
    assert decode.times >= 1.5 and slow.times >= 1.1 and fast.times >= 1.3
    assert 0 < slow.predicted_loss < fast.predicted_loss
    assert missed.predicted_loss is None and "cannot be reached" in missed.summary
    for name in ("chart.png", "chart.svg"):
        draw(whole, tmp_path / name)
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "chart.svg").read_text()
    with pytest.raises(SpqError, match="a chart is a file ending in"):
        draw(whole, tmp_path / "chart.gif")


def test_limits_of_the_recipe_hold_for_every_point():
    [plain] = found(110_000, limits=Limits()).points
    profile = profile_of(tiny_model(), INT4, Int8())
    recipe = RECIPE.limited(Limits(kv=0.5, context=16, profile=profile))
    options = {"recipe": recipe, "tokenizer": tiny_tokenizer()}
    [held] = frontier(tiny_model(), [110_000], limits=Limits(), **options).points
    assert held.predicted_loss > plain.predicted_loss
    assert held == frontier(tiny_model(), [110_000], **options).points[0]


def test_speeds_alone_take_no_sizes():
    assert [point.speed for point in by_speed(prefills=["1.1x"]).points] == ["1.1x"]
