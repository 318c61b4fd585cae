"""Rotary embeddings: their frequencies, and on what these depend."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from spqlm.errors import SpqError


def restore_frequencies(model: PreTrainedModel) -> None:
    """Give rotary frequencies the values that the config states.

    `.half()` and `.to(torch.bfloat16)` round them with everything else, and what `from_pretrained`
    loads has them in float32.

    Raises:
        SpqError: they are others, which a checkpoint would not keep.
    """
    for module in model.modules():
        if not _is_rotary(module):
            continue
        kind: Any = type(module)
        fresh = kind(config=module.config).to(model.device)._buffers
        for name, wanted in fresh.items():
            held: Any = module._buffers[name]
            # The others follow the length that was read last, where the type has several.
            if name.endswith("original_inv_freq") and not torch.equal(held, wanted.to(held.dtype)):
                raise SpqError(
                    "the model's rotary frequencies are not those of its config; state them there, "
                    "in rope_parameters"
                )
        module._buffers.update(fresh)


def reads_long(model: PreTrainedModel, length: int) -> bool:
    """Whether a sequence is so long that `longrope` takes its other frequencies.

    It takes them for a whole batch, by the longest: short and long sequences are not to be computed
    together, and not from a common cache.
    """
    stated = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    groups = [stated] if "rope_type" in stated else list(stated.values())
    return any(
        group["rope_type"] == "longrope" and length > group["original_max_position_embeddings"]
        for group in groups
        if isinstance(group, dict)
    )


def _is_rotary(module: nn.Module) -> bool:
    names = module._non_persistent_buffers_set
    return hasattr(module, "config") and any(name.endswith("inv_freq") for name in names)
