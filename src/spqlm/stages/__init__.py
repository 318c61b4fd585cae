"""One file per stage; the file's name is its key in a recipe."""

import difflib
import pkgutil
from importlib import import_module

from spqlm.errors import SpqError
from spqlm.stages.base import Stage

__all__ = ["Stage", "available", "stage_class"]


def available() -> list[str]:
    """Keys that a recipe may use, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base")


def stage_class(key: str) -> type[Stage]:
    """The stage behind a recipe key.

    Raises:
        SpqError: no such stage; names the nearest one.
    """
    if key not in available():
        nearest = difflib.get_close_matches(key, available(), n=1, cutoff=0.0)
        raise SpqError(f"unknown stage {key!r}; did you mean {nearest[0]!r}?")
    stage: type[Stage] = import_module(f"{__name__}.{key}").STAGE
    return stage
