"""Checkpoints that others quantised: those whose codes transformers turns back into weights."""

from typing import Any

from transformers.utils.quantization_config import FineGrainedFP8Config, Mxfp4Config

from spqlm.errors import SpqError

# What multiplies the codes out as they are read, by `quant_method`.
_READERS: dict[str, type[Any]] = {"fp8": FineGrainedFP8Config, "mxfp4": Mxfp4Config}
_SPOKEN = {"fp8": "fp8 in blocks (DeepSeek, Qwen)", "mxfp4": "mxfp4 (gpt-oss)"}


def reading(method: str) -> Any:
    """What `from_pretrained` takes as `quantization_config` to read such a checkpoint in floats."""
    return _READERS[method](dequantize=True)


def note_of(method: str) -> str:
    """What to say of the weights that come of it."""
    return f"multiplied out of {_SPOKEN[method]}: what that rounding lost stays lost"


def check_opened(name: str, method: Any) -> None:
    """Refuse a checkpoint that cannot be turned back into weights.

    Args:
        name: of the model, for messages.
        method: that its config states.

    Raises:
        SpqError: names the method, and those that are opened.
    """
    if method in _READERS:
        return
    raise SpqError(
        f"model {name!r} is already quantised with {method or 'a method that it does not name'}; "
        f"start from the original weights (of others, {' and '.join(_READERS)} are opened)"
    )
