"""Experts of a layer, as programs store them: each projection of all of them in one tensor."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from spqlm.formats import StoredWeight
from spqlm.model.experts import PerExpert, is_packed, of_each_expert, projections
from spqlm.model.view import ModelView
from spqlm.modules.linear import Compressed
from spqlm.modules.ops import stored_weight


def holds_experts(module: nn.Module) -> bool:
    """Whether a module holds experts, in transformers' layout or as linear layers."""
    return isinstance(module, PerExpert) or is_packed(module)


def modules_to_store(view: ModelView) -> Iterator[tuple[str, nn.Module]]:
    """All modules by name, less a tied head and what is inside a module that holds experts."""
    tied = view.lm_head.name if view.tied else None
    inside: tuple[str, ...] = ()
    for name, module in view.model.named_modules():
        if name == tied or name.startswith(inside):
            continue
        if holds_experts(module):
            inside += (f"{name}.",)
        yield name, module


def weights_of_experts(module: Any) -> Iterator[tuple[str, list[StoredWeight]]]:
    """Projections by name, each of all experts; gate and up are two.

    Args:
        module: that holds experts.

    Yields:
        `gate_proj`, `up_proj` or `down_proj`, and a weight [out, in] of each expert; those of gate
        and up are copies.
    """
    for name in projections(module):
        weights = [stored_weight(one).detach() for one in of_each_expert(module, name)]
        if name != "gate_up_proj":
            yield name, weights
            continue
        gate, up = torch.arange(weights[0].shape[0]).chunk(2)
        yield "gate_proj", [weight.take_rows(gate) for weight in weights]
        yield "up_proj", [weight.take_rows(up) for weight in weights]


def stored_otherwise(model: nn.Module) -> set[str]:
    """Names of tensors of compressed weights and of experts, as `state_dict` has them."""
    names: set[str] = set()
    for name, module in model.named_modules():
        if isinstance(module, Compressed):
            names |= {f"{name}.{part}" for part in module.stored_weight.tensors()}
        elif holds_experts(module):
            names |= {f"{name}.{part}" for part in module.state_dict()}
    return names
