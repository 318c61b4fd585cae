"""What a causal language model is made of, found by looking at it."""

import re
from collections.abc import Iterator
from typing import Any, Literal

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from spqlm.errors import SpqError
from spqlm.model.experts import expert_count

# Where a projection is, or in which class of module, says that it works on each token alone.
_ALONE = re.compile(r"\b(\w*mlp|\w*moe|\w*experts?|feed_?forward|ffn|fc\d)\b")
_ALONE_CLASS = re.compile(r"(MLP|Mlp|MoE|Moe|Experts|FeedForward|FFN)$")


def text_decoder(model: PreTrainedModel) -> nn.Module:
    """The part that reads text and has the decoder layers."""
    decoder: nn.Module | None = model.get_decoder()
    return model if decoder is None else decoder


def layers_name(model: PreTrainedModel) -> str:
    """Full name of the list of decoder layers: the longest list of blocks that is in no other.

    Raises:
        SpqError: there is none.
    """
    decoder = text_decoder(model)
    lists = list(_outermost_lists(decoder))
    if not lists:
        kinds = sorted(_other_weights(decoder))
        others = f": its weights are in {', '.join(kinds)}" if kinds else ""
        raise SpqError(
            f"{type(model).__name__} has no list of decoder layers that could be compressed one by "
            f"one{others}; use a decoder of transformers that has nn.Linear in an nn.ModuleList"
        )
    return name_of(model, max(lists, key=len))


def _outermost_lists(module: nn.Module) -> Iterator[nn.ModuleList]:
    for child in module.children():
        if isinstance(child, nn.ModuleList) and _has_projections(child):
            yield child
        else:
            yield from _outermost_lists(child)


def _has_projections(block: nn.Module) -> bool:
    """Whether there are linear layers inside, or what `open_layers` makes linear layers of."""
    transposed = any(isinstance(module, Conv1D) for module in block.modules())
    return transposed or any(True for _ in projections(block))


def _other_weights(decoder: nn.Module) -> set[str]:
    """Classes of what holds matrices in repeated blocks, where no linear layer does."""
    blocks = [module for module in decoder.modules() if isinstance(module, nn.ModuleList)]
    return {
        type(module).__name__
        for block in blocks
        for module in block.modules()
        if any(parameter.ndim == 2 for parameter in module.parameters(recurse=False))
    }


def name_of(model: nn.Module, wanted: nn.Module) -> str:
    """Full name of a module inside a model."""
    return next(name for name, module in model.named_modules() if module is wanted)


def projections(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Linear layers inside, dense or compressed, with their names; routers are none.

    A low-rank layer counts as one, and so does a layer that wraps another.
    """
    for name, child in module.named_children():
        path = f"{prefix}.{name}" if prefix else name
        if not _is_projection(child):
            yield from projections(child, path)
        elif not _routes(module, child):
            yield path, child


def _is_projection(module: nn.Module) -> bool:
    return hasattr(module, "in_features") and hasattr(module, "out_features")


def _routes(block: nn.Module, linear: Any) -> bool:
    """Whether a linear layer chooses among experts, or says how much the shared one counts."""
    counts = [count for child in block.children() if (count := expert_count(child))]
    return bool(counts) and linear.out_features in (1, *counts)


def role_of(layer: nn.Module, path: str) -> Literal["attention", "mlp"]:
    """What a projection does: `mlp` where each token is alone, `attention` where tokens mix."""
    alone, module = bool(_ALONE.search(path)), layer
    for part in path.split(".")[:-1]:
        module = module.get_submodule(part)
        alone |= bool(_ALONE_CLASS.search(type(module).__name__))
    return "mlp" if alone else "attention"
