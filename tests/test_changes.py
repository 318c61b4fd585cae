import json

import pytest
import torch
from pydantic import ValidationError

from spqlm.changes import Change, Cut, Plan, Zeroed
from spqlm.formats.dense import Dense
from spqlm.formats.group_sparse import GroupSparse
from spqlm.formats.int4 import Int4
from spqlm.formats.int8 import Int8
from spqlm.formats.low_rank import LowRank

CUT = Cut(side="input", unit="mlp", units=4, channels_per_unit=2, kept=3, removed=[1])
CHANGES = {
    "nothing": {},
    "dense": {"format": Dense()},
    "int8": {"format": Int8(granularity="per_tensor")},
    "int4": {"format": Int4(group_size=32)},
    "group_sparse": {"format": GroupSparse(group_size=8, bits=8, kept=5, zero=True)},
    "low_rank": {"format": LowRank(rank=3)},
    "low_rank_int4": {"format": LowRank(rank=32, factor=Int4(group_size=32))},
    "cut": {"cut": CUT},
    "zeroed": {"zeroed": Zeroed(entries=12, nonzeros=5)},
    "priced": {"format": Int8(), "cut": CUT, "predicted_loss": 0.25},
}


def change(**fields) -> Change:
    return Change(module="model.layers.0.mlp", bytes_before=100, bytes_after=40, **fields)


@pytest.mark.parametrize("kind", CHANGES)
def test_every_kind_of_change_survives_json(kind):
    made = change(**CHANGES[kind])
    plan = Plan(stage="budget", changes=[made], summary="one weight")
    again = Plan.model_validate_json(plan.model_dump_json())
    assert again == plan
    assert Plan.model_validate(plan.model_dump(mode="json")) == plan
    [found] = again.changes
    for field, value in CHANGES[kind].items():
        assert getattr(found, field) == value
        assert type(getattr(found, field)) is type(value)
    for field in {"format", "cut", "zeroed", "predicted_loss"} - set(CHANGES[kind]):
        assert getattr(found, field) is None


def test_changes_of_different_kinds_are_different():
    written = {change(**fields).model_dump_json() for fields in CHANGES.values()}
    assert len(written) == len(CHANGES)


def test_a_format_in_json_is_its_name_and_its_fields():
    written = change(format=LowRank(rank=32, factor=Int4(group_size=32))).model_dump(mode="json")
    factor = {"format": "int4", "group_size": 32}
    assert written["format"] == {"format": "low_rank", "rank": 32, "factor": factor}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"format": {"format": "int88"}}, "unknown format 'int88', the nearest is 'int8'"),
        ({"format": {"format": "int4", "size": 8}}, "int4 has no parameter 'size', only: group_s"),
        ({"format": {"format": "int4", "group_size": 3}}, "multiple of 2"),
        ({"cut": {"side": "middle"}}, "side"),
        ({"bits": 4}, "bits"),
    ],
)
def test_what_no_change_says_is_refused(fields, words):
    written = change().model_dump(mode="json") | fields
    with pytest.raises(ValidationError, match=words):
        Change.model_validate_json(json.dumps(written))


@pytest.mark.parametrize("priced", [True, False])
def test_details_of_an_earlier_manifest_are_read(priced):
    loss = {"predicted_loss": 0.125} if priced else {}
    details = {"bits": 4, "group_size": 32, "rank": None, "sparsity": None, **loss}
    written = {
        "module": "model.layers.0.mlp.down_proj",
        "bytes_before": 100,
        "bytes_after": 40,
        "details": details | {"cut": CUT.model_dump(mode="json")},
    }
    plan = {"stage": "budget", "changes": [written], "summary": "1 weights to int4"}
    [found] = (read := Plan.model_validate_json(json.dumps(plan))).changes
    assert (found.module, found.bytes_before, found.bytes_after) == (written["module"], 100, 40)
    assert found.cut == CUT
    assert found.predicted_loss == read.predicted_loss == (0.125 if priced else None)
    assert found.format is None
    assert Plan.model_validate_json(read.model_dump_json()) == read


def test_details_of_stages_that_had_others_are_read():
    for details in ({}, {"rank": 8, "rank_for_variance": 5}, {"granularity": "per_channel"}):
        fields = {"module": "m", "bytes_before": 2, "bytes_after": 1, "details": details}
        assert Change.model_validate(fields) == Change(module="m", bytes_before=2, bytes_after=1)


def test_a_plan_adds_up_its_changes():
    losses = [0.25, None, 0.5]
    plan = Plan(stage="budget", changes=[change(predicted_loss=loss) for loss in losses])
    assert plan.bytes_saved == 3 * 60
    assert plan.predicted_loss == 0.75
    assert Plan(stage="quantize", changes=[change()]).predicted_loss is None
    assert Plan(stage="quantize").bytes_saved == 0


def test_the_index_of_a_cut_is_of_the_channels_that_stay():
    assert torch.equal(CUT.index, torch.tensor([0, 1, 4, 5, 6, 7]))
