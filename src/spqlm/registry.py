"""Folders in which a file is a plug-in: its name is what recipes and checkpoints call it."""

import difflib
import functools
import pkgutil
from collections.abc import Iterable


def plugins(folder: Iterable[str]) -> list[str]:
    """Names of the plug-ins in a package, sorted; `base` and private modules are none.

    Args:
        folder: the package's `__path__`.
    """
    return list(_listed(tuple(folder)))


@functools.cache
def _listed(folder: tuple[str, ...]) -> list[str]:
    """Once for each package: loading asks for every module's format."""
    names = (module.name for module in pkgutil.iter_modules(folder))
    return sorted(name for name in names if name != "base" and not name.startswith("_"))


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that is spelt most like this one.

    Raises:
        ValueError: nothing is known.
    """
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)
    if not found:
        raise ValueError("there are no names to choose from")
    return found[0]
