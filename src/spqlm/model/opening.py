"""A model's weights as linear layers: experts in 3-D parameters, and GPT-2's transposed layers.

transformers' `Conv1D` is a linear layer whose weight is [in, out]. Opened, a model has nothing but
`nn.Linear`; what is still dense in the end goes back into the layout that transformers has for it.
"""

from collections.abc import Collection
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from spqlm.model.experts import close_experts, open_experts
from spqlm.modules.linear import held
from spqlm.modules.ops import linear_from

# On a linear layer: it was a Conv1D.
_MARK = "was_conv1d"


def open_layers(model: nn.Module, within: Collection[str] | None = None) -> None:
    """Make every projection a linear layer, in place; they share the memory of what they were.

    Args:
        model: with any layers.
        within: names of modules that are to become linear layers; None for all.
    """
    open_experts(model, within)
    for name, module in list(model.named_modules()):
        if isinstance(module, Conv1D) and (within is None or name in within):
            linear: Any = linear_from(module.weight.detach().T, module.bias.detach())
            setattr(linear, _MARK, True)
            model.set_submodule(name, linear)


def close_layers(model: nn.Module) -> None:
    """Put what is still dense back into the layout that it had, in place."""
    close_experts(model)
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and hasattr(module, _MARK):
            made = Conv1D.__new__(Conv1D)
            nn.Module.__init__(made)
            made.nf, made.nx = module.out_features, module.in_features
            made.weight = held(module.weight.detach().T.contiguous(), trains=True)
            made.bias = held(module.bias.detach(), trains=True)
            model.set_submodule(name, made.train(module.training))
