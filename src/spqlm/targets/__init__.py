"""One file per kind of checkpoint that can be written; the file's name is the target's.

A hyphen in a name is an underscore in the file's.
"""

from importlib import import_module

from spqlm.errors import SpqError
from spqlm.registry import nearest, plugins
from spqlm.targets.base import Output, Target

__all__ = ["NATIVE", "Output", "Target", "available", "target_class"]

NATIVE = "native"
"""Our own checkpoints, which load in transformers once `spqlm` is imported."""


def available() -> list[str]:
    """Names of targets, sorted."""
    return [name.replace("_", "-") for name in plugins(__path__)]


def target_class(name: str) -> type[Target]:
    """The target of this name.

    Raises:
        SpqError: no such target; names the nearest one, or those that a program of this name reads.
    """
    if name not in available():
        read = [key for key in available() if name.lower() in target_class(key).programs]
        if read:
            raise SpqError(
                f"{name!r} is a program and not an export target; it reads {' and '.join(read)}"
            )
        raise SpqError(
            f"unknown export target {name!r}; did you mean {nearest(name, available())!r}? "
            f"There are {', '.join(available())}"
        )
    target: type[Target] = import_module(f"{__name__}.{name.replace('-', '_')}").TARGET
    return target
