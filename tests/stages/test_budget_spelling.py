"""Recipes that name bits and group sizes, as those of earlier versions do."""

import pytest
import torch
from tests.helpers import calibrated, logits, tiny_model
from tests.stages.budgets import HEADERS, HUGE, compress, reach

from spqlm.errors import SpqError
from spqlm.formats.dense import Dense
from spqlm.formats.group_sparse import GroupSparse
from spqlm.formats.int4 import Int4
from spqlm.formats.int8 import Int8
from spqlm.model.view import ModelView
from spqlm.recipe import Recipe
from spqlm.stages.budget import Budget

SMALL, WIDE = Int4(group_size=32), Int4(group_size=64)
SPELLED = {
    "group_sizes": ({"group_sizes": [32]}, (SMALL, Int8()), (SMALL, Int8())),
    "several": ({"group_sizes": [32, 64]}, (SMALL, WIDE, Int8()), (SMALL, WIDE, Int8())),
    "bits": ({"bits": [4]}, (WIDE,), (WIDE, Int8())),
    "embedding_bits": ({"embedding_bits": [8]}, (WIDE, Int8()), (Int8(),)),
    "all": (
        {"bits": (16, 8, 4), "embedding_bits": (16,), "group_sizes": (32,)},
        (SMALL, Int8(), Dense()),
        (Dense(),),
    ),
}
# The same menu in both spellings.
EARLIER = {"bits": [4, 8], "group_sizes": [64]}
FORMATS = [{"int4": {"group_size": 64}}, "int8"]


def of(fields: dict) -> Budget:
    [stage] = Recipe.from_dict({"stages": [{"budget": fields}]}).stages
    return stage


@pytest.mark.parametrize("name", SPELLED)
def test_bits_and_group_sizes_are_spelled_out_as_formats(name):
    fields, formats, embedding_formats = SPELLED[name]
    stage = of(fields)
    assert (stage.formats, stage.embedding_formats) == (formats, embedding_formats)
    assert of(stage.model_dump(mode="json")) == stage
    assert set(stage.model_dump()) == set(Budget.model_fields)


def test_both_spellings_are_the_defaults():
    assert of(EARLIER) == of({"formats": FORMATS, "embedding_formats": FORMATS}) == Budget()


@pytest.mark.parametrize("share", [0.5, None])
def test_both_spellings_give_one_plan_and_one_model(share, text_file):
    target = None
    if share is not None:
        four, eight = reach(tiny_model())
        target = round(four + share * (eight - four)) + HEADERS // 2
    plans, results = [], []
    for fields in (EARLIER, {"formats": FORMATS, "embedding_formats": FORMATS}):
        result = compress(tiny_model(), text_file, stages=[{"budget": fields}], target_size=target)
        plans.append(result.manifest.stages[0].plan)
        results.append(result.model)
    assert plans[0] == plans[1]
    formats = {change.format for change in plans[0].changes}
    assert formats == ({Int8()} if target is None else {WIDE, Int8()})
    one, other = (model.state_dict() for model in results)
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert torch.equal(*map(logits, results))


def test_sparsities_without_4_bits_dropped_nothing_in_earlier_recipes():
    assert of({"bits": [8], "sparsities": [0.5]}).sparsities == ()
    assert of({"bits": [4], "sparsities": [0.5]}).sparsities == (0.5,)
    assert of({"formats": ["int8"], "sparsities": [0.5]}).sparsities == (0.5,)


def test_groups_are_dropped_where_no_whole_weight_has_as_few_bits():
    model = tiny_model()
    view, statistics = ModelView(model), calibrated(model)
    fields = {"formats": (Int8(),), "embedding_formats": (Int8(),), "sparsities": (0.5,)}
    whole = Budget(**fields, target_bytes=HUGE).plan(view, statistics)
    assert {change.format for change in whole.changes} == {Int8()}
    _, eight = reach(model)
    plan = Budget(**fields, target_bytes=round(0.9 * eight)).plan(view, statistics)
    sparse = [c.format for c in plan.changes if isinstance(c.format, GroupSparse)]
    assert sparse and {form.bits for form in sparse} == {4}
    assert {c.format for c in plan.changes if c.format not in sparse} == {Int8()}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"bits": [3]}, "bits are of 4, 8 or 16, not 3; name `formats` instead"),
        ({"bits": [[4]]}, r"bits are of 4, 8 or 16, not \[4\]"),
        ({"embedding_bits": [2, 8]}, "embedding_bits are of 4, 8 or 16, not 2"),
        ({"bits": 4}, "bits must be a list, not 4"),
        ({"embedding_bits": None}, "embedding_bits must be a list, not None"),
        ({"group_sizes": 64}, "group_sizes must be a list, not 64"),
        ({"group_sizes": [3]}, "formats.0.group_size: .* multiple of 2, got 3"),
        ({"bits": []}, "formats: .* at least 1 item"),
        ({"bits": [4], "formats": ["int8"]}, "give `formats`, or `bits` and `group_sizes`, not bo"),
        ({"group_sizes": [32], "embedding_formats": ["int8"]}, "give `embedding_formats`, or"),
        ({"formats": ["int9"]}, "formats.0: unknown format 'int9', the nearest is 'int8'"),
        ({"formats": [{"int4": {"size": 32}}]}, "int4 has no parameter 'size', only: group_size"),
        ({"formats": [{"dense": {"size": 32}}]}, "dense has no parameter 'size', only: none"),
        ({"formats": [{"int4": [3]}]}, "formats.0: .* dictionary"),
        ({"formats": [{"int4": {}, "int8": {}}]}, "formats.0: a format is one name with its par"),
        ({"formats": [8]}, "formats.0: a format is a name or a mapping, not 8"),
        ({"formats": []}, "formats: .* at least 1 item"),
    ],
    ids=str,
)
def test_a_wrong_menu_is_one_sentence(fields, words):
    with pytest.raises(SpqError, match=words) as refused:
        of(fields)
    assert "\n" not in str(refused.value)
    assert "stage 'budget'" in str(refused.value)
