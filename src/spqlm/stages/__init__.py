"""One file per stage; the file's name is its key in a recipe."""

from importlib import import_module

from spqlm.errors import SpqError
from spqlm.registry import nearest, plugins
from spqlm.stages.base import Stage

__all__ = ["Stage", "available", "stage_class"]


def available() -> list[str]:
    """Keys that a recipe may use, sorted."""
    return plugins(__path__)


def stage_class(key: str) -> type[Stage]:
    """The stage behind a recipe key.

    Raises:
        SpqError: no such stage; names the nearest one.
    """
    if key not in available():
        raise SpqError(f"unknown stage {key!r}; did you mean {nearest(key, available())!r}?")
    stage: type[Stage] = import_module(f"{__name__}.{key}").STAGE
    return stage
