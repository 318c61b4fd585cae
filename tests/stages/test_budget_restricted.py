"""Weights that are stored alike, and formats that a target does not take."""

import re

import pytest
from tests.helpers import calibrated, tiny_model
from tests.stages.budgets import HEADERS, INT4, budget, compress, predicted, reach

from spqlm.allocation.restriction import Restriction, ties
from spqlm.errors import SpqError
from spqlm.formats.int8 import Int8
from spqlm.model.view import ModelView
from spqlm.recipe import load_recipe


@pytest.fixture(scope="module")
def tiny():
    model = tiny_model()
    return ModelView(model), calibrated(model), sum(reach(model)) // 2 + HEADERS // 2


@pytest.mark.parametrize("alike", ["fused", "uniform"])
def test_tied_weights_take_one_format_and_the_summary_says_what_that_costs(alike, tiny):
    view, statistics, target = tiny
    free = budget(target_bytes=target).plan(view, statistics)
    plan = budget(target_bytes=target, alike=alike).plan(view, statistics)
    formats: dict[str, set] = {}
    for change in plan.changes:
        tie = ties(view, alike).get(change.module)
        if tie is not None:
            formats.setdefault(tie, set()).add(change.format)
    assert formats and all(len(found) == 1 for found in formats.values())
    said = float(re.search(r"alike: (\S+) nats|layers: (\S+) nats", plan.summary)[0].split()[-2])
    assert said == pytest.approx(predicted(plan) - predicted(free), abs=1e-4)
    assert said >= -1e-4


def test_formats_that_cannot_be_shared_are_named():
    # A width that groups of 32 divide and another that they do not, and nothing else to take.
    view = ModelView(tiny_model(intermediate_size=96))
    stage = budget(formats=(INT4, type(INT4)(group_size=48)), alike="uniform", target_bytes=10**9)
    small = budget(formats=(type(INT4)(group_size=64), type(INT4)(group_size=48)), alike="uniform")
    statistics = calibrated(view.model)
    assert stage.plan(view, statistics).changes
    with pytest.raises(SpqError, match="have no format in common"):
        small.within(10**9).plan(view, statistics)


def test_a_restricted_stage_offers_what_is_allowed():
    stage = budget(widths=(0.5,), ranks=(0.5,), sparsities=(0.5,))
    only = Restriction(lambda role, form: None if form == Int8() else "not here", "fused")
    made = stage.restricted(only)
    assert made.formats == made.embedding_formats == (Int8(),)
    assert made.alike == "fused" and not made.even_cuts
    assert stage.restricted(Restriction()) == stage


def test_a_target_of_layers_of_one_size_has_them_cut_alike_and_keeps_weights_whole():
    stage = budget(widths=(0.5,), ranks=(0.5,), mlp_ranks=(0.5,), sparsities=(0.5,))
    made = stage.restricted(Restriction(even=True, whole=True))
    assert made.even_cuts and made.widths == (0.5,)
    assert made.ranks == made.mlp_ranks == made.sparsities == ()
    assert made.restricted(Restriction()).even_cuts


def test_a_recipe_that_chooses_nothing_cannot_be_restricted():
    with pytest.raises(SpqError, match="only a recipe with the stage `budget`"):
        load_recipe("int8").restricted(Restriction(alike="fused"))


def test_compress_takes_it_as_an_option(text_file, tiny):
    model = tiny_model()
    result = compress(model, text_file, target_size=tiny[2], alike="fused")
    [record] = result.manifest.stages
    assert record.config["budget"]["alike"] == "fused"
    assert "q, k and v alike" in record.plan.summary
