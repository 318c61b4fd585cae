"""Recipes that say how they differ from another one."""

import pytest
import yaml

from spqlm.errors import SpqError
from spqlm.recipe import SHIPPED, Recipe, load_recipe


def like(**fields) -> Recipe:
    return Recipe.from_dict({"like": "default", **fields}, "mine")


def test_what_is_left_unsaid_is_as_in_the_other_recipe():
    assert like() == load_recipe("default")
    assert like(description="mine").calibration == load_recipe("default").calibration


def test_a_stage_that_is_named_keeps_its_other_parameters():
    budget, distill = load_recipe("default").stages
    found = like(calibration={"windows": 7}, stages=["budget", {"distill": {"steps": 5}}])
    assert found.calibration.windows == 7
    assert found.calibration.source == load_recipe("default").calibration.source
    assert found.stages[0] == budget
    assert found.stages[1] == distill.model_copy(update={"steps": 5})


def test_a_stage_that_is_not_named_is_left_out_and_another_one_has_its_defaults():
    found = like(stages=[{"svd": {"variance": 0.9}}, {"budget": None}])
    assert [stage.key for stage in found.stages] == ["svd", "budget"]
    assert found.stages[1] == load_recipe("default").stages[0]


def test_mappings_are_merged_and_lists_are_not():
    found = like(stages=[{"budget": {"limits": {"batch": 4}, "formats": ["int8"]}}])
    [budget], before = found.stages, load_recipe("default").stages[0]
    assert budget.limits == before.limits.model_copy(update={"batch": 4})
    assert len(budget.formats) == 1 and budget.embedding_formats == before.embedding_formats


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"like": "defalt"}, "like: there is no recipe 'defalt'; did you mean 'default'?"),
        ({"like": None}, "like: there is no recipe None"),
        ({"like": ["int8"]}, r"like: there is no recipe \['int8'\]"),
        ({"stages": [{"budget": {"roundin": "gptq"}}]}, "unknown key 'roundin'; did you mean"),
        ({"stages": [{"budgit": {}}]}, "budgit"),
        ({"stages": [{"distill": 5}]}, "parameters must be a mapping"),
        ({"stages": [5]}, "a stage is one key with its parameters"),
        ({"stages": 3}, "must be a list of stages"),
        ({"calibration": 5}, "calibration"),
    ],
)
def test_what_is_wrong_is_named(fields, message):
    with pytest.raises(SpqError, match=message) as caught:
        like(**fields)
    assert str(caught.value).startswith("recipe 'mine': ")


def test_files_may_be_like_others(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("like: thorough\nstages: [budget]\n")
    assert load_recipe(file).stages == load_recipe("default").stages[:1]


@pytest.mark.parametrize("name", ["quick", "thorough"])
def test_shipped_recipes_state_what_differs(name):
    written = yaml.safe_load((SHIPPED / f"{name}.yaml").read_text())
    assert written["like"] == "default"
    assert load_recipe(name) != load_recipe("default")
