"""Places where vLLM delivers tensors of a checkpoint whose sizes it does not know."""

from collections.abc import Callable

import torch
from torch import nn


def expect(layer: nn.Module, part: str, dtype: torch.dtype, receive: Callable[..., None]) -> None:
    """Put a parameter of size zero wherever a tensor will be delivered; again is harmless.

    Args:
        layer: of vLLM.
        part: name of the tensor after the layer's own, with dots where modules stand between.
        dtype: vLLM warns where the file has another.
        receive: called with the parameter, with the tensor, and with what else vLLM says.
    """
    *path, own = part.split(".")
    place = layer
    for step in path:
        if not hasattr(place, step):
            place.add_module(step, nn.Module())
        place = place.get_submodule(step)
    if own in place._parameters:
        return
    parameter = nn.Parameter(torch.empty(0, dtype=dtype), requires_grad=False)
    parameter.weight_loader = receive  # type: ignore[attr-defined]
    place.register_parameter(own, parameter)
