"""Weights behind codes that are evenly spaced: scale · code, plus a zero where there are some."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from spqlm.formats.base import Latent, StoredWeight
from spqlm.numerics import integer
from spqlm.numerics.group_pruning import nearest

# Half the width of a code's cell, in steps, and a little less: what rounds to the code for certain.
CELL = 0.49

Settled = Callable[[Tensor, Tensor, Tensor | None], StoredWeight]


class UniformLatent(Latent):
    """scale · round((weight - zero) / scale) + zero, where a group is kept.

    Rounding passes gradients straight through (arXiv 1308.3432), so a scale's gradient is that of
    LSQ (arXiv 1902.08153). Weights start at the values that the codes stand for.

    Attributes:
        weight: parameter float32 [rows, columns].
        scale: parameter float32 [rows, groups].
        zero: parameter float32 [rows, groups], or None.
        keep: bool buffer [rows, groups]; None where every group is.
    """

    keep: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        scale: Tensor,
        bits: int,
        settled: Settled,
        zero: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> None:
        """See the attributes.

        Args:
            weight: [rows, columns].
            scale: [rows, groups].
            bits: of a code.
            settled: the weight as it is stored, from int8 codes [rows, columns] and float32 scales
                and zeros [rows, groups].
            zero: [rows, groups] or None.
            keep: bool [rows, groups] or None.
        """
        super().__init__()
        self.weight = nn.Parameter(weight.float())
        self.scale = nn.Parameter(scale.float())
        self.zero = None if zero is None else nn.Parameter(zero.float())
        self.register_buffer("keep", keep)
        self._bits = bits
        self._settled = settled

    def forward(self) -> Tensor:
        """Float32 [rows, columns]."""
        scale = as_stored(self.scale)
        zero = None if self.zero is None else as_stored(self.zero)
        rounded: Tensor = _Rounded.apply(self.weight, scale, zero, self.keep, self._bits)
        return rounded

    def grids(self) -> list[nn.Parameter]:
        """Scales and zeros."""
        return [self.scale] if self.zero is None else [self.scale, self.zero]

    def step(self) -> float:
        """Mean magnitude of the scales of groups that are kept."""
        scale = self.scale.detach()
        return float((scale if self.keep is None else scale[self.keep]).abs().mean())

    @torch.no_grad()
    def approach(self, target: Tensor) -> None:
        """Each weight goes to where the target's is, but not out of its code's cell."""
        limits, scale = integer.code_range(self._bits), self.scale[..., None]
        code = _positions(self.weight, self.scale, self.zero).round_()
        wanted = _positions(target.float(), self.scale, self.zero)
        moved = (wanted - code).clamp_(-CELL, CELL).add_(code).clamp_(*limits).mul_(scale)
        if self.zero is not None:
            moved += self.zero[..., None]
        if self.keep is not None:
            moved *= self.keep[..., None]
        self.weight.copy_(moved.flatten(1))

    @torch.no_grad()
    def settle(self) -> StoredWeight:
        """Nearest codes at scales rounded to what they are stored as."""
        scale = integer.round_scale(self.scale)
        zero = None if self.zero is None else integer.round_scale(self.zero)
        shift = torch.zeros_like(scale) if zero is None else zero
        return self._settled(nearest(self.weight, scale, shift, self._bits), scale, zero)


class _Rounded(torch.autograd.Function):
    """Weights as their codes give them; only what is given is kept for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, scale: Tensor, zero: Tensor | None, keep: Tensor | None, bits: int
    ) -> Tensor:
        ctx.save_for_backward(weight, scale, zero, keep)
        ctx.bits = bits
        values = _positions(weight, scale, zero).clamp_(*integer.code_range(bits)).round_()
        values *= scale[..., None]
        if zero is not None:
            values += zero[..., None]
        if keep is not None:
            values *= keep[..., None]
        return values.flatten(1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        weight, scale, zero, keep = ctx.saved_tensors
        low, high = integer.code_range(ctx.bits)
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


def as_stored(scale: Tensor) -> Tensor:
    """What it will be rounded to, with the gradient of what it is."""
    return scale + (integer.round_scale(scale) - scale).detach()
