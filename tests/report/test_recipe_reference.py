from pathlib import Path

from spqlm.report.recipe_reference import recipe_reference
from spqlm.stages import available

DOCUMENT = Path(__file__).parents[2] / "docs" / "reference" / "recipes.md"


def test_the_document_is_what_the_stages_say_now():
    assert DOCUMENT.read_text().strip() == recipe_reference().strip(), "run `make docs`"


def test_every_stage_has_a_section():
    reference = recipe_reference()
    assert all(f"## `{key}`" in reference for key in available())
