"""Each type with a file: what the page says of it is tried on a small model, end to end."""

from pathlib import Path

import pytest
import torch
from tests.helpers import logits, tiny_model, tiny_tokenizer

import spqlm
from spqlm.model.families import family_for, known
from spqlm.model.opening import open_layers
from spqlm.model.view import ModelView
from spqlm.recipe import Recipe
from spqlm.report.families import look

PAGE = Path("docs/families.md").read_text(encoding="utf-8").splitlines()
PRUNED = [name for name in known() if family_for(name).prunes]


@pytest.mark.parametrize("model_type", known())
def test_the_page_says_what_is_found_and_all_of_it_is_verified(model_type):
    row = look(model_type, verify=True)
    assert row.cells[-1] == "yes"
    assert row.markdown() in PAGE, "run `spq families --verify --markdown > docs/families.md`"


def test_the_page_lists_the_types_that_have_a_file():
    assert [line.split("`")[1] for line in PAGE if line.startswith("| `")] == known()


@pytest.mark.parametrize("model_type", PRUNED)
def test_what_a_family_says_belongs_together_does(model_type, text_file):
    """A model whose pruned units were already dead computes what it did before."""
    model = tiny_model(model_type)
    open_layers(model)
    units = family_for(model_type).prunes
    with torch.no_grad():
        for layer in ModelView(model).layers:
            for unit in units:
                _kill_half(layer, unit)
    expected = logits(model)
    half = {"minimum": 0.5, "maximum": 0.5, "multiple_of": 1, "modules": list(units)}
    calibration = {"source": str(text_file), "windows": 2, "context": 32}
    recipe = Recipe.from_dict({"calibration": calibration, "stages": [{"prune": half}]})
    result = spqlm.compress(model, None, recipe=recipe, tokenizer=tiny_tokenizer())
    cuts = [change.cut for change in result.manifest.stages[0].plan.changes]
    assert {cut.unit for cut in cuts} == set(units)
    assert all(cut.removed == list(range(1, cut.units, 2)) for cut in cuts)
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-5)


def _kill_half(layer, unit):
    if not layer.prunable(unit):
        return
    count, sides = layer.units(unit), layer.sides(unit)
    reader = sides[-1][0].module
    reader.weight.view(reader.out_features, count, -1)[:, 1::2] = 0
    written = [layer.value] if unit == "attention" else layer.mlp_inputs
    for module in (named.module for named in written):
        module.weight.view(count, -1, module.in_features)[1::2] *= 1e-3
        if module.bias is not None:
            module.bias.view(count, -1)[1::2] = 0
