"""Checkpoints that others quantised: one file for each `quant_method` that can be turned back.

The file's name is the method, with `_` for `-`. Nothing else lists them, so a new file is a new
method.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from spqlm.errors import SpqError
from spqlm.registry import plugins
from spqlm.sources.packed.base import ByTransformers, Packed, Packing

__all__ = ["ByTransformers", "Packed", "Packing", "opened", "packing_of"]


def opened() -> list[str]:
    """The methods whose checkpoints are opened, as `quant_method` spells them, sorted."""
    return [name.replace("_", "-") for name in plugins(__path__)]


def packing_of(name: str, settings: Mapping[str, Any]) -> Packing:
    """How the weights of a checkpoint are stored that others quantised.

    Args:
        name: of the model, for messages.
        settings: the `quantization_config` of its config.

    Raises:
        SpqError: it cannot be turned back into weights; names the method, and those that can.
    """
    method = settings.get("quant_method")
    if method is None and (settings.get("load_in_4bit") or settings.get("load_in_8bit")):
        method = "bitsandbytes"  # which did not name itself at first
    if method not in opened():
        raise SpqError(
            f"model {name!r} is already quantised with {method or 'a method that it does not name'}"
            f"; start from the original weights (of others, {', '.join(opened())} are opened)"
        )
    kind: type[Packing] = import_module(f"{__name__}.{method.replace('-', '_')}").PACKING
    packing = kind(settings)
    refusal = packing.refusal()
    if refusal is not None:
        raise SpqError(
            f"model {name!r} is already quantised with {method}, of which {refusal} is not opened; "
            "start from the original weights"
        )
    return packing
