"""Width, rank, bits and sparsity together."""

import re

import pytest
import torch
from tests.helpers import calibrated, format_of, logits, tiny_model
from tests.stages.budgets import (
    HEADERS,
    HUGE,
    INT4,
    budget,
    compress,
    parameter_bytes,
    predicted,
    reach,
    throughout,
)

import spqlm
from spqlm.errors import SpqError
from spqlm.formats.dense import Dense
from spqlm.formats.group_sparse import GroupSparse
from spqlm.formats.int2 import Int2
from spqlm.formats.int3 import Int3
from spqlm.formats.int8 import Int8
from spqlm.formats.low_rank import LowRank
from spqlm.model.memory import weight_file_bytes
from spqlm.model.view import ModelView
from spqlm.modules.ops import module_bytes
from spqlm.numerics.knapsack import RELATIVE_GAP
from spqlm.stages.base import Inputs
from spqlm.training.reconstruction import Reconstruction

ENSEMBLE = {
    "formats": (INT4, Int8(), Dense()),
    "embedding_formats": (Int8(),),
    "widths": (0.75, 0.5),
    "key_value_groups": (0.5,),
    "ranks": (0.8,),
    "sparsities": (0.25, 0.5),
    "multiple_of": 8,
}
# Menus that the ensemble contains.
SPECIAL = {
    "bits": {"widths": (), "key_value_groups": (), "ranks": (), "sparsities": ()},
    "uniform": {
        "formats": (Int8(),),
        "widths": (),
        "key_value_groups": (),
        "ranks": (),
        "sparsities": (),
    },
    "sparsity": {"formats": (INT4,), "widths": (), "key_value_groups": (), "ranks": ()},
    "width": {"formats": (Dense(),), "ranks": (), "sparsities": ()},
    "rank": {"formats": (Dense(),), "widths": (), "key_value_groups": (), "sparsities": ()},
}


def wide_model():
    """Wide enough for ranks."""
    return tiny_model(hidden_size=128, head_dim=32, num_hidden_layers=1)


@pytest.fixture(scope="module")
def wide():
    model = wide_model()
    return model, ModelView(model), calibrated(model, 8)


@pytest.mark.parametrize("special", SPECIAL)
def test_a_special_case_never_beats_the_ensemble(wide, special):
    model, view, statistics = wide
    menu = ENSEMBLE | SPECIAL[special]
    largest = budget(**menu, target_bytes=HUGE).plan(view, statistics)
    # Midway between the most and what it can just reach.
    with pytest.raises(SpqError, match="cannot be reached") as refused:
        budget(**menu, target_bytes=1).plan(view, statistics)
    least = float(re.search(r"is (\d+\.\d+) MB", str(refused.value))[1]) * 1e6
    most = parameter_bytes(model) - largest.bytes_saved + HEADERS
    target = round((least + most) / 2)
    alone = budget(**menu, target_bytes=target).plan(view, statistics)
    together = budget(**ENSEMBLE, target_bytes=target).plan(view, statistics)
    slack = 1 + 2 * RELATIVE_GAP
    assert predicted(together) <= predicted(alone) * slack + 1e-9


@pytest.mark.parametrize("special", ["width", "rank"])
def test_widths_or_ranks_alone_reach_a_target_without_rounding(special):
    model = wide_model()
    statistics = calibrated(model, 8)
    target = round(0.95 * (parameter_bytes(model) - 3 * 260 * 128 * 2)) + HEADERS
    stage = budget(**(ENSEMBLE | SPECIAL[special]), target_bytes=target)
    plan = stage.plan(ModelView(model), statistics)
    layers = [change for change in plan.changes if "layers" in change.module]
    ranked = [change.format for change in layers if isinstance(change.format, LowRank)]
    plain = {change.format for change in layers if not isinstance(change.format, LowRank)}
    assert plain | {form.factor for form in ranked} == {Dense()}
    cut, factorised = sum(change.cut is not None for change in layers), len(ranked)
    assert (cut > 0, factorised > 0) == (special == "width", special == "rank")
    assert (f"{cut} cut" in plan.summary) == (special == "width")
    assert (f"{factorised} factorised" in plan.summary) == (special == "rank")
    stage.apply(ModelView(model), plan, Inputs(statistics))
    assert parameter_bytes(model) <= target
    assert bool(torch.isfinite(logits(model)).all())


def test_groups_are_dropped_where_four_bits_do_not_reach(tmp_path, text_file):
    model = wide_model()
    four, _ = reach(model)
    four_bits = [{"int4": {"group_size": 32}}]
    menu = {"formats": four_bits, "embedding_formats": four_bits}
    stages = [{"budget": menu | {"sparsities": [0.3, 0.6]}}]
    target = round(0.85 * four) + HEADERS
    result = compress(model, text_file, tmp_path / "out", stages, target_size=target)
    [record] = result.manifest.stages
    sparse = [c for c in record.plan.changes if isinstance(c.format, GroupSparse)]
    assert sparse and f"{len(sparse)} group-sparse" in record.plan.summary
    for change in sparse:
        layer = ModelView(model).module(change.module)
        assert format_of(layer) == change.format
        assert module_bytes(layer) == change.bytes_after
    assert weight_file_bytes(tmp_path / "out") <= target
    assert torch.equal(logits(spqlm.load(tmp_path / "out")), logits(model))


@pytest.mark.parametrize("form", [INT4, Int3(group_size=32), Int2(group_size=32)], ids=str)
def test_learned_rounding_brings_layers_nearer(form, caplog):
    results = []
    for steps in (0, 30):
        model = tiny_model()
        statistics, view = calibrated(model, 16), ModelView(model)
        stage = budget(
            formats=(form,),
            rounding="descent",
            target_bytes=HUGE,
            reconstruction=Reconstruction(
                steps=steps, check_every=10, batch_size=8, learning_rate=0.003
            ),
        )
        with caplog.at_level("INFO"):
            stage.apply(view, stage.plan(view, statistics), Inputs(statistics))
        results.append(view.layers[-1].query.module)
    losses = [record.args[1:] for record in caplog.records if "held-out" in record.msg]
    assert len(losses) == 2 and all(after <= before for before, after in losses)
    assert any(after < before for before, after in losses)
    plain, learned = results
    assert format_of(learned) == form
    assert not torch.equal(plain.scale, learned.scale)


@pytest.mark.parametrize(
    "settings",
    [{"worthwhile": 1e9}, {"most_bits": 3}, {"steps": 0}],
    ids=["little to gain", "too many bits", "not trained"],
)
def test_layers_that_are_not_worth_it_are_rounded_and_no_more(settings):
    weights = []
    for reconstruction in (settings, {"steps": 0}):
        model = tiny_model()
        statistics, view = calibrated(model, 16), ModelView(model)
        fields = {"steps": 5, "check_every": 1} | reconstruction
        stage = budget(**throughout(INT4), target_bytes=HUGE, reconstruction=fields)
        stage.apply(view, stage.plan(view, statistics), Inputs(statistics))
        weights.append([leaf.module.codes for leaf in view.leaves()])
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))


def test_without_training_codes_are_rounded_alone():
    stage = budget(reconstruction={"steps": 50, "most_bits": 4})
    assert stage.untrained().reconstruction == Reconstruction(steps=0, most_bits=4)
    assert stage.untrained().formats == stage.formats


def test_a_refused_target_names_a_size_that_shapes_can_reach(wide):
    model, view, statistics = wide
    with pytest.raises(SpqError, match="cannot be reached") as refused:
        budget(**ENSEMBLE, target_bytes=1000).plan(view, statistics)
    smallest = round(float(re.search(r"is (\d+\.\d+) MB", str(refused.value))[1]) * 1e6)
    plan = budget(**ENSEMBLE, target_bytes=smallest).plan(view, statistics)
    assert parameter_bytes(model) - plan.bytes_saved <= smallest


def test_short_text_is_said_in_the_summary(wide):
    _, view, statistics = wide
    stage = budget(target_bytes=HUGE)
    assert "damping" not in stage.plan(view, statistics).summary
    short = stage.plan(view, calibrated(view.model, 4)).summary
    assert "fitted on 96 tokens" in short and "damping was raised" in short
