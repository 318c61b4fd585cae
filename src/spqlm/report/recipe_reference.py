"""Every recipe and every parameter of every stage, from the stages' own fields."""

from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from spqlm.calibration.gather import CalibrationConfig
from spqlm.recipe import load_recipe, shipped
from spqlm.stages import available, stage_class


def recipe_reference() -> str:
    """Markdown: shipped recipes, then one table of parameters per stage."""
    recipes = "\n".join(f"| `{name}` | {load_recipe(name).description} |" for name in shipped())
    stages = "\n".join(_section(key, stage_class(key)) for key in available())
    return f"""# Recipes

A recipe is a YAML mapping with `description`, `calibration` and `stages`: a list of stages,
each one key with its parameters, in the order they run. An unknown key is an error. With
`like: default`, or another name of the table, it states what differs: what it leaves unsaid of the
calibration and of each stage that it names is as there.

| recipe | what it does |
|---|---|
{recipes}

{_section("calibration", CalibrationConfig)}
{stages}"""


def _section(key: str, kind: type[BaseModel]) -> str:
    rows = "\n".join(_row(name, field) for name, field in kind.model_fields.items())
    summary = (kind.__doc__ or "").strip().splitlines()[0]
    return f"""## `{key}`

{summary}

| parameter | default | allowed | meaning |
|---|---|---|---|
{rows}
"""


def _row(name: str, field: FieldInfo) -> str:
    default = field.default
    several = isinstance(default, tuple)
    shown = ", ".join(str(item) for item in default) if several else str(default)
    return f"| `{name}` | {shown} | {_allowed(field)} | {field.description} |"


def _allowed(field: FieldInfo) -> str:
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    bounds = [
        f"{sign} {getattr(bound, attribute)}"
        for bound in field.metadata
        for attribute, sign in signs.items()
        if hasattr(bound, attribute)
    ]
    return ", ".join(bounds) or _choices(field.annotation)


def _choices(annotation: Any) -> str:
    for part in (annotation, *get_args(annotation)):
        if get_origin(part) is Literal:
            return ", ".join(str(choice) for choice in get_args(part))
    return getattr(annotation, "__name__", str(annotation))
