"""Recipes that say how they differ from another one."""

from collections.abc import Mapping
from typing import Any

LIKE = "like"


def completed(fields: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a recipe, with what it leaves unsaid as another one has it.

    A stage that is named takes its other parameters from the stage of that name in the other
    recipe. Where stages are listed, those that are not named are left out.

    Args:
        fields: parsed YAML, the key `like` among them.
        base: the other recipe, as `Recipe.to_dict` gives it.
    """
    own = {key: value for key, value in fields.items() if key != LIKE}
    if isinstance(own.get("stages"), list | tuple):
        known = {key: value for entry in base["stages"] for key, value in entry.items()}
        own["stages"] = [_stage(entry, known) for entry in own["stages"]]
    return _merged(base, own)


def _stage(entry: Any, known: Mapping[str, Any]) -> Any:
    """What is no stage is left for the recipe to refuse."""
    if isinstance(entry, str):
        entry = {entry: None}
    if not isinstance(entry, dict) or len(entry) != 1:
        return entry
    key, parameters = next(iter(entry.items()))
    own = {} if parameters is None else parameters
    if key not in known or not isinstance(own, dict):
        return entry
    return {key: _merged(known[key], own)}


def _merged(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings within mappings are merged; anything else takes the place of what was there."""
    merged = dict(base)
    for key, value in own.items():
        there = merged.get(key)
        if isinstance(there, dict) and isinstance(value, dict):
            value = _merged(there, value)
        merged[key] = value
    return merged
