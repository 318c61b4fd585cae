"""What every linear layer can do, dense or compressed.

Each function dispatches on the layer's class; a new kind of layer registers its own.
"""

import copy
from functools import singledispatch

import torch
from torch import Tensor, nn


@singledispatch
def dense_weight(module: nn.Module) -> Tensor:
    """The weight that the layer applies, as one matrix.

    Returns:
        [out_features, in_features] in the layer's float dtype.

    Raises:
        TypeError: not a linear layer.
    """
    raise TypeError(f"{type(module).__name__} is not a linear layer")


@singledispatch
def select_outputs(module: nn.Module, index: Tensor) -> nn.Module:
    """A layer with only the output features in `index` (int64 [kept], ascending)."""
    raise TypeError(f"{type(module).__name__} is not a linear layer")


@singledispatch
def select_inputs(module: nn.Module, index: Tensor) -> nn.Module:
    """A layer that reads only the input features in `index` (int64 [kept], ascending)."""
    raise TypeError(f"{type(module).__name__} is not a linear layer")


@singledispatch
def stored(module: nn.Module) -> tuple[Tensor, Tensor | None, Tensor | None] | None:
    """The weight or codes, the scale and the bias that the layer computes with; None if unknown."""
    return None


def watched(module: nn.Module) -> bool:
    """Whether somebody would notice if the module's weights were used without calling it."""
    hooked = module._forward_hooks or module._forward_pre_hooks
    return bool(hooked) or "forward" in module.__dict__


def module_bytes(module: nn.Module) -> int:
    """Bytes of the module's parameters and buffers, each once."""
    held = [*module.parameters(), *module.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in held)


def on_meta(module: nn.Module) -> nn.Module:
    """A twin of the module with shapes and dtypes but no data, to try a change of shape on."""
    held = [*module.parameters(), *module.buffers()]
    twins = {id(tensor): tensor.detach().to("meta") for tensor in held}
    parameters = {id(p) for p in module.parameters()}
    memo = {
        key: nn.Parameter(twin, requires_grad=False) if key in parameters else twin
        for key, twin in twins.items()
    }
    return copy.deepcopy(module, memo)


def linear_from(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """An `nn.Linear` that holds exactly these tensors (no copy, no initialisation).

    Args:
        weight: [out, in].
        bias: [out] or None.
    """
    with torch.device("meta"):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear


@dense_weight.register
def _(module: nn.Linear) -> Tensor:
    return module.weight.detach()


@stored.register
def _(module: nn.Linear) -> tuple[Tensor, Tensor | None, Tensor | None] | None:
    return (module.weight, None, module.bias) if type(module) is nn.Linear else None


@select_outputs.register
def _(module: nn.Linear, index: Tensor) -> nn.Module:
    bias = None if module.bias is None else module.bias.detach()[index]
    return linear_from(module.weight.detach()[index], bias)


@select_inputs.register
def _(module: nn.Linear, index: Tensor) -> nn.Module:
    return linear_from(module.weight.detach()[:, index], module.bias)
