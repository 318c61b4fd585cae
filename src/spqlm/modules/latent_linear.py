"""A layer of integer codes while the codes are trained."""

from functools import singledispatch
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from spqlm.modules.group_sparse_linear import GroupSparseLinear
from spqlm.modules.int4_linear import Int4Linear
from spqlm.numerics import group_sparse, integer
from spqlm.numerics.group_pruning import nearest

# Codes of so many bits, the least and the largest.
RANGES = {4: (-8, 7), 8: (-127, 127)}


class LatentLinear(nn.Module):
    """y = (scale · round((weight - zero) / scale) + zero) x + bias, where a group is kept.

    Rounding passes gradients straight through (arXiv 1308.3432), so a scale's gradient is that of
    LSQ (arXiv 1902.08153). Weights start at the values that the codes stand for.

    Attributes:
        weight: parameter float32 [out, in].
        scale: parameter float32 [out, groups].
        zero: parameter float32 [out, groups], or None.
        keep: bool buffer [out, groups]; None where every group is.
        bias: [out] or None, not trained.
        bits: of a code.
    """

    keep: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        scale: Tensor,
        zero: Tensor | None,
        keep: Tensor | None,
        bias: nn.Parameter | None,
        bits: Literal[4, 8],
    ) -> None:
        """See the attributes."""
        super().__init__()
        self.weight = nn.Parameter(weight.float())
        self.scale = nn.Parameter(scale.float())
        self.zero = None if zero is None else nn.Parameter(zero.float())
        self.register_buffer("keep", keep)
        self.bias = bias
        self.bits = bits

    def forward(self, x: Tensor) -> Tensor:
        """X [..., in_features] -> [..., out_features], in the dtype of x."""
        return functional.linear(x, self._rounded().to(x.dtype), self.bias)

    def _rounded(self) -> Tensor:
        scale = _as_stored(self.scale)
        zero = None if self.zero is None else _as_stored(self.zero)
        rounded: Tensor = _Rounded.apply(self.weight, scale, zero, self.keep, self.bits)
        return rounded

    @torch.no_grad()
    def codes(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """What it has come to: int8 codes [out, in], float32 scales [out, groups], and zeros."""
        scale = integer.round_scale(self.scale)
        zero = None if self.zero is None else integer.round_scale(self.zero)
        shift = torch.zeros_like(scale) if zero is None else zero
        return nearest(self.weight, scale, shift, self.bits), scale, zero


class _Rounded(torch.autograd.Function):
    """Weights as their codes give them; only what is given is kept for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        scale: Tensor,
        zero: Tensor | None,
        keep: Tensor | None,
        bits: Literal[4, 8],
    ) -> Tensor:
        ctx.save_for_backward(weight, scale, zero, keep)
        ctx.bits = bits
        values = _positions(weight, scale, zero).clamp_(*RANGES[bits]).round_()
        values *= scale[..., None]
        if zero is not None:
            values += zero[..., None]
        if keep is not None:
            values *= keep[..., None]
        return values.flatten(1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        weight, scale, zero, keep = ctx.saved_tensors
        low, high = RANGES[ctx.bits]
        gradient = gradients[0].unflatten(1, (scale.shape[1], -1))
        if keep is not None:
            gradient = gradient * keep[..., None]
        position = _positions(weight, scale, zero)
        through = gradient * ((position >= low) & (position <= high))
        grad_zero = None if zero is None else (gradient - through).sum(2)
        codes = position.clamp(low, high).round_()
        grad_scale = (codes.mul_(gradient) - position.mul_(through)).sum(2)
        return through.flatten(1), grad_scale, grad_zero, None, None


def _positions(weight: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
    grouped = weight.unflatten(1, (scale.shape[1], -1))
    return (grouped if zero is None else grouped - zero[..., None]) / scale[..., None]


def _as_stored(scale: Tensor) -> Tensor:
    return scale + (integer.round_scale(scale) - scale).detach()


@singledispatch
def latent(module: nn.Module) -> LatentLinear | None:
    """The layer as one whose codes can be trained; None where there are none to train."""
    return None


@latent.register
def _(module: Int4Linear) -> LatentLinear:
    scale = module.scale.detach()
    codes = integer.unpack_int4(module.codes)
    weight = (codes.unflatten(1, (scale.shape[1], -1)) * scale.float()[..., None]).flatten(1)
    return LatentLinear(weight, scale, None, None, module.bias, 4)


@latent.register
def _(module: GroupSparseLinear) -> LatentLinear:
    held = module.stored_weight
    keep = held.keep

    def by_group(values: Tensor, otherwise: float) -> Tensor:
        spread = torch.full(keep.shape, otherwise, device=keep.device)
        spread[keep] = values.detach().float()
        return spread

    scale = by_group(held.scale, 1.0)
    zero = None if held.zero is None else by_group(held.zero, integer.SMALLEST_SCALE)
    codes = group_sparse.spread(group_sparse.stored_codes(held), keep)
    grouped = codes.unflatten(1, (keep.shape[1], -1)) * scale[..., None]
    if zero is not None:
        grouped = grouped + zero[..., None]
    return LatentLinear(grouped.flatten(1), scale, zero, keep, module.bias, module.bits)


def settle(trained: LatentLinear, dtype: torch.dtype) -> nn.Module:
    """The layer of codes that training came to; scales in `dtype`."""
    codes, scale, zero = trained.codes()
    if trained.keep is None:
        return Int4Linear.from_codes(codes, scale.to(dtype), trained.bias)
    zero = None if zero is None else zero.to(dtype)
    packed = group_sparse.pack(codes, scale.to(dtype), zero, trained.keep, trained.bits)
    return GroupSparseLinear.from_weight(packed, trained.bias)
