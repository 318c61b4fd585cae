"""What targets that are a directory of transformers' layout share."""

import copy
from pathlib import Path
from typing import Any

from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spqlm.checkpoint.alignment import align
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
    """Model and tokenizer as transformers writes them, tensors at cache lines.

    Returns:
        bytes of the weight files.
    """
    with our_bars():
        model.save_pretrained(directory, max_shard_size=max_shard_size)
    for file in directory.glob("*.safetensors"):
        align(file)
    if tokenizer is not None:
        tokenizer.save_pretrained(directory)
    return weight_file_bytes(directory)


def save_tensors(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    state: dict[str, Tensor],
    quantization: dict[str, Any] | None,
    directory: Path,
    max_shard_size: str,
) -> int:
    """The same with other tensors than the model's own, and what the config says of them.

    Returns:
        bytes of the weight files.
    """
    config = copy.deepcopy(model.config)
    config.__dict__.pop("quantization_config", None)
    if quantization is not None:
        config.quantization_config = quantization
    config.architectures = [type(model).__name__]
    config.save_pretrained(directory)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(directory)
    if tokenizer is not None:
        tokenizer.save_pretrained(directory)
    tied = model.all_tied_weights_keys
    kept = {name: tensor for name, tensor in state.items() if name not in tied}
    save_torch_state_dict(kept, directory, max_shard_size=max_shard_size, metadata={"format": "pt"})
    return weight_file_bytes(directory)


def read_tensors(directory: Path) -> dict[str, Tensor]:
    """All tensors of the weight files, by name."""
    found: dict[str, Tensor] = {}
    for file in directory.glob("*.safetensors"):
        found |= load_file(file)
    return found


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
