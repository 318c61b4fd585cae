"""What targets that are a directory of transformers' layout share."""

import copy
from pathlib import Path
from typing import Any

from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spqlm.allocation.restriction import Restriction
from spqlm.checkpoint.alignment import aligned_files
from spqlm.checkpoint.bars import our_bars
from spqlm.checkpoint.quantizer import attach
from spqlm.checkpoint.verify import check_logits, fixed_logits
from spqlm.errors import SpqError
from spqlm.model.mapped import watch
from spqlm.model.memory import weight_file_bytes
from spqlm.model.view import ModelView
from spqlm.sources.load import load_model
from spqlm.targets._experts import holds_experts
from spqlm.targets.base import Target


class PretrainedTarget(Target):
    """A target that transformers writes and reads by itself."""

    def prepare(self, view: ModelView, *, as_floats: bool = False) -> list[str]:
        """Write the structure into the model's config, for `save_pretrained` of its own too."""
        notes = super().prepare(view, as_floats=as_floats)
        attach(view.model)
        return notes

    def restriction(self, others: int = 0) -> Restriction:
        """Nothing: it holds everything, as it is or multiplied out."""
        return Restriction()

    def write(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        place: Path,
        max_shard_size: str,
    ) -> int:
        """As `save_pretrained`, and tensors at cache lines."""
        with our_bars(), aligned_files():
            model.save_pretrained(place, max_shard_size=max_shard_size)
        if tokenizer is not None:
            tokenizer.save_pretrained(place)
        return weight_file_bytes(place)

    def verify(self, model: PreTrainedModel, place: Path) -> str:
        """Reload in the same dtype on the same device, and compare logits on a fixed prompt."""
        options: dict[str, Any] = {"dtype": model.dtype, "device_map": None}
        if model.device.type != "cpu":
            options["device_map"] = str(model.device)
        reloaded = load_model(place, **options).model
        watch(ModelView(reloaded))
        check_logits(fixed_logits(model), fixed_logits(reloaded))
        return "reloaded it and compared its logits"


def refuse_experts(key: str, model: PreTrainedModel) -> None:
    """Refuse a mixture of experts for a program that reads them in a layout of its own.

    Raises:
        SpqError: the model has experts.
    """
    if any(map(holds_experts, model.modules())):
        raise SpqError(f"{key} has no layout for the experts of {model.config.model_type!r} yet")


def save_tensors(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    state: dict[str, Tensor],
    quantization: dict[str, Any] | None,
    directory: Path,
    max_shard_size: str,
) -> int:
    """The layout of transformers with other tensors than the model's own.

    Args:
        model: for its configs and its class.
        tokenizer: of the model, or None.
        state: tensors by name; tied ones are left out.
        quantization: what the config says of them, if anything.
        directory: an empty one.
        max_shard_size: of one weight file, such as `4GB`.

    Returns:
        bytes of the weight files.
    """
    config = copy.deepcopy(model.config)
    # What our own checkpoints say: the format, and the file that imports us.
    for ours in ("quantization_config", "auto_map"):
        config.__dict__.pop(ours, None)
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
