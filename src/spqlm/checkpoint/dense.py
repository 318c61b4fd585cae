"""Back to dense: weights multiplied out, and layers of the sizes that the config states."""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from spqlm.checkpoint.spec import LinearPlace, WeightSpec
from spqlm.checkpoint.structure import describe, is_factor, skeleton
from spqlm.model.opening import open_layers
from spqlm.model.tying import tie_head
from spqlm.model.view import ModelView
from spqlm.modules.embedding import CompressedEmbedding
from spqlm.modules.ops import dense_weight, linear_from


@torch.no_grad()
def multiply_out(view: ModelView, names: Collection[str]) -> None:
    """Replace compressed modules by dense ones of the same size, in place.

    Weights are rounded to the model's dtype; that is all that changes.

    Args:
        view: the model.
        names: of modules, and not of the factors inside a low-rank one; of a tied pair the
            embedding's.
    """
    tied = view.tied
    usual = skeleton(view.model)
    for name in names:
        module = view.module(name)
        if isinstance(module, CompressedEmbedding):
            view.replace(name, _table(module, usual.get_submodule(name)))
        else:
            view.replace(name, linear_from(dense_weight(module), module.bias))
    if tied:
        tie_head(view)


def _table(module: CompressedEmbedding, like: Any) -> nn.Module:
    """An embedding of the class that the model has for it, which may scale what it looks up."""
    for name, buffer in list(like.named_buffers()):
        like.register_buffer(name, torch.full(buffer.shape, module.embed_scale), persistent=False)
    like.weight = nn.Parameter(module.dequantize())
    return nn.Module.eval(like)


def resized(model: PreTrainedModel) -> dict[str, tuple[int, int]]:
    """Linear layers that are smaller than the config states: [out, in] there, by full name."""
    usual = skeleton(model)
    specs = describe(model)
    open_layers(usual, within=specs)
    found = {}
    for name, spec in specs.items():
        if is_factor(name, specs) or not isinstance(spec, WeightSpec):
            continue
        if isinstance(spec.place, LinearPlace):
            there: Tensor = usual.get_submodule(name).weight  # type: ignore[assignment]
            if spec.place.shape != tuple(there.shape):
                rows, columns = there.shape
                found[name] = (rows, columns)
    return found


@torch.no_grad()
def restore_sizes(view: ModelView) -> None:
    """Make layers that were cut as large as the config states, dense, in place.

    Zeros stand for what was cut: a neuron or a head whose weights are zero adds nothing. They
    come last, and heads were cut by whole key/value groups, so every query head still finds the
    key/value head that belongs to it.
    """
    for name, (rows, columns) in resized(view.model).items():
        module = view.module(name)
        weight = dense_weight(module)
        padded = weight.new_zeros(rows, columns)
        padded[: weight.shape[0], : weight.shape[1]] = weight
        view.replace(name, linear_from(padded, _padded_bias(module.bias, rows)))
    for layer in view.layers:
        layer.settle_heads()


def densify(model: PreTrainedModel) -> None:
    """Make a compressed model the ordinary one that its config describes, in place."""
    view = ModelView(model)
    specs = describe(model)
    if view.tied:
        specs.pop(view.lm_head.name, None)
    compressed = (
        name
        for name, spec in specs.items()
        if isinstance(spec, WeightSpec) and not spec.dense and not is_factor(name, specs)
    )
    multiply_out(view, list(compressed))
    restore_sizes(view)


def _padded_bias(bias: Tensor | None, rows: int) -> Tensor | None:
    if bias is None:
        return None
    padded = bias.new_zeros(rows)
    padded[: len(bias)] = bias
    return padded
