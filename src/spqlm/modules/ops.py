"""What every linear layer and embedding can do, dense or compressed."""

from typing import Literal

import torch
from torch import Tensor, nn

from spqlm.formats import StoredWeight
from spqlm.formats.dense import Dense, DenseWeight
from spqlm.formats.low_rank import LowRankWeight
from spqlm.modules.embedding import CompressedEmbedding
from spqlm.modules.linear import Compressed, CompressedLinear, held
from spqlm.modules.low_rank_linear import LowRankLinear

Side = Literal["input", "output"]


def stored_weight(module: nn.Module) -> StoredWeight:
    """The weight of a linear layer or an embedding, as it is held.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(module, LowRankLinear):
        return LowRankWeight(module.format, stored_weight(module.left), stored_weight(module.right))
    if isinstance(module, Compressed):
        return module.stored_weight
    if isinstance(module, nn.Linear | nn.Embedding):
        return DenseWeight(Dense(), module.weight)
    raise TypeError(f"{type(module).__name__} is not a linear layer or an embedding")


def dense_weight(module: nn.Module) -> Tensor:
    """The weight that the layer applies, as one matrix: [out, in] in the layer's float dtype."""
    return stored_weight(module).detach().restore()


def linear_of(weight: StoredWeight, bias: Tensor | None) -> nn.Module:
    """The linear layer that holds exactly these tensors.

    Args:
        weight: [out, in], floats in the model's dtype.
        bias: [out] or None.
    """
    if isinstance(weight, LowRankWeight):
        return LowRankLinear(linear_of(weight.right, None), linear_of(weight.left, bias))
    if isinstance(weight, DenseWeight):
        return linear_from(weight.weight, bias)
    return CompressedLinear(weight, bias)


def embedding_of(weight: StoredWeight, like: nn.Module) -> nn.Module:
    """An embedding that holds exactly these tensors; the rest is as in the table `like`."""
    if isinstance(weight, DenseWeight):
        return like
    padding: int | None = getattr(like, "padding_idx", None)
    return CompressedEmbedding(weight, embed_scale(like), padding)


def embed_scale(module: nn.Module) -> float:
    """The factor on an embedding's rows; 1 for most models."""
    found = getattr(module, "scalar_embed_scale", getattr(module, "embed_scale", 1.0))
    return float(found)


def with_weight(module: nn.Module, weight: StoredWeight) -> nn.Module:
    """A layer like `module` with another weight, its floats cast to the layer's own dtype."""
    weight = weight.cast(float_dtype(module))
    if isinstance(module, nn.Embedding | CompressedEmbedding):
        return embedding_of(weight, module)
    return linear_of(weight, getattr(module, "bias", None))


def float_dtype(module: nn.Module) -> torch.dtype:
    """Of a layer's weights or scales."""
    return next(t.dtype for t in stored_weight(module).tensors().values() if t.is_floating_point())


def select(module: nn.Module, side: Side, index: Tensor) -> nn.Module:
    """A layer with only the features in `index` (int64 [kept], ascending) at one side.

    Raises:
        TypeError: it is not a linear layer.
        SpqError: the format of the weight cannot be cut there.
    """
    if isinstance(module, nn.Embedding | CompressedEmbedding):
        raise TypeError(f"{type(module).__name__} is not a linear layer")
    weight, bias = stored_weight(module).detach(), getattr(module, "bias", None)
    if side == "input":
        return linear_of(_within_rank(weight.take_columns(index)), bias)
    cut = None if bias is None else bias.detach()[index]
    return linear_of(_within_rank(weight.take_rows(index)), cut)


def _within_rank(weight: StoredWeight) -> StoredWeight:
    """A weight after a cut: one that became smaller than its two factors is multiplied out."""
    if isinstance(weight, LowRankWeight) and weight.format.misfit(*weight.shape) is not None:
        return DenseWeight(Dense(), weight.restore())
    return weight


def plain(module: nn.Module) -> bool:
    """Whether the layer computes what its stored weight says, and nothing else."""
    return isinstance(module, Compressed | LowRankLinear) or type(module) in (
        nn.Linear,
        nn.Embedding,
    )


def watched(module: nn.Module) -> bool:
    """Whether somebody would notice if the module's weights were used without calling it."""
    hooked = module._forward_hooks or module._forward_pre_hooks
    return bool(hooked) or "forward" in module.__dict__


def module_bytes(module: nn.Module) -> int:
    """Bytes of the module's parameters and buffers, each once."""
    held = [*module.parameters(), *module.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in held)


def linear_from(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """An `nn.Linear` that holds exactly these tensors: no copy, and no initialisation.

    It trains as one that transformers loads does.

    Args:
        weight: [out, in].
        bias: [out] or None.
    """
    with torch.device("meta"):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.weight = held(weight, trains=True)
    if bias is not None:
        linear.bias = held(bias, trains=True)
    return linear
