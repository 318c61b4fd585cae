"""What targets that are a directory of transformers' layout share."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spqlm.checkpoint.bars import our_bars
from spqlm.checkpoint.verify import check_logits, fixed_logits
from spqlm.model.memory import weight_file_bytes
from spqlm.sources.load import load_model


def save_pretrained(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    directory: Path,
    max_shard_size: str,
) -> int:
    """Model and tokenizer as transformers writes them.

    Returns:
        bytes of the weight files.
    """
    with our_bars():
        model.save_pretrained(directory, max_shard_size=max_shard_size)
    if tokenizer is not None:
        tokenizer.save_pretrained(directory)
    return weight_file_bytes(directory)


def check_reloaded(model: PreTrainedModel, directory: Path) -> None:
    """Reload in the same dtype on the same device, and compare logits on a fixed prompt.

    Raises:
        CheckpointError: they differ.
    """
    options: dict[str, Any] = {"dtype": model.dtype, "device_map": None}
    if model.device.type != "cpu":
        options["device_map"] = str(model.device)
    reloaded = load_model(directory, **options).model
    check_logits(fixed_logits(model), fixed_logits(reloaded))
