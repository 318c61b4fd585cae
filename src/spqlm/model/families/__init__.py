"""What is known of some types of models: one file per Hugging Face `model_type`.

The file's name is the `model_type`. A new file is a new family: nothing else lists them. A type
without a file is compressed by looking at the model; its blocks keep their widths.
"""

from importlib import import_module

from spqlm.model.families.base import Attention, Family, Mlp, Prunable
from spqlm.registry import plugins

__all__ = ["Attention", "Family", "Mlp", "Prunable", "family_for", "known"]

UNKNOWN = Family(prunes=(), whole="nothing states which of its rows and columns belong together")


def known() -> list[str]:
    """The `model_type`s that have a file, sorted."""
    return plugins(__path__)


def family_for(model_type: str) -> Family:
    """The family of a `model_type`: that of its file, or one that prunes nothing."""
    if model_type not in known():
        return UNKNOWN
    family: Family = import_module(f"{__name__}.{model_type}").FAMILY
    return family
