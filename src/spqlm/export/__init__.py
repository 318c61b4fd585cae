"""One file per kind of checkpoint that can be written; the file's name is the target's name."""

import difflib
import pkgutil
from importlib import import_module

from spqlm.errors import SpqError
from spqlm.export.base import Output, Target

__all__ = ["NATIVE", "Output", "Target", "available", "target_class"]

NATIVE = "native"
"""Our own checkpoints, which load in transformers once `spqlm` is imported."""


def available() -> list[str]:
    """Names of targets, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base")


def target_class(name: str) -> type[Target]:
    """The target of this name.

    Raises:
        SpqError: no such target; names the nearest one.
    """
    if name not in available():
        nearest = difflib.get_close_matches(name, available(), n=1, cutoff=0.0)
        raise SpqError(f"unknown export target {name!r}; did you mean {nearest[0]!r}?")
    target: type[Target] = import_module(f"{__name__}.{name}").TARGET
    return target
