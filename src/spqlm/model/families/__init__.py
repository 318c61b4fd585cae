"""One file per Hugging Face `model_type`: where its layers are and what they do.

The file's name is the `model_type`. A new file is a new family: nothing else lists them.
"""

from importlib import import_module

from spqlm.errors import SpqError
from spqlm.model.families.base import Attention, Family, Mlp
from spqlm.registry import plugins

__all__ = ["Attention", "Family", "Mlp", "family_for", "supported"]


def supported() -> list[str]:
    """The `model_type`s that can be compressed, sorted."""
    return plugins(__path__)


def family_for(model_type: str) -> Family:
    """The family of a `model_type`.

    Raises:
        SpqError: there is none.
    """
    if model_type not in supported():
        raise SpqError(
            f"model type {model_type!r} is not supported; supported are {', '.join(supported())}"
        )
    family: Family = import_module(f"{__name__}.{model_type}").FAMILY
    return family
