"""Where a model computes, and where its weights are meanwhile."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def input_device(model: PreTrainedModel) -> torch.device:
    """Where token ids are to be.

    The device of the first weights; where accelerate offloads them, the one that it brings them to.
    """
    embedding: Any = model.get_input_embeddings()
    place = getattr(getattr(embedding, "_hf_hook", None), "execution_device", None)
    return model.device if place is None else torch.device(place)


def compute_device(name: str | None) -> torch.device:
    """Where a model is worked on, by what the user calls it.

    Args:
        name: None is the CPU, and `auto` the first GPU, if there is one.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name or "cpu")


def held_state(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """A model's state by name; what accelerate offloads comes from where it is, one at a time.

    Args:
        model: loaded; its tensors on the meta device are those that accelerate holds elsewhere.
    """
    for name, tensor in model.state_dict().items():
        if not tensor.is_meta:
            yield name, tensor
            continue
        owner, _, own = name.rpartition(".")
        yield name, _offloaded(model.get_submodule(owner))[own]


def _offloaded(module: nn.Module) -> Any:
    hook: Any = getattr(module, "_hf_hook", None)
    maps = [getattr(part, "weights_map", None) for part in getattr(hook, "hooks", [hook])]
    return next(found for found in maps if found is not None)
