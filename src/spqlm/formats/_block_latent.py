"""Weights behind the codes of blocks: steps are scales times integers, which stay as they are."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from spqlm.formats._uniform_latent import CELL, as_stored
from spqlm.formats.base import Latent, StoredWeight
from spqlm.numerics.blocks import Blocks, Grid
from spqlm.numerics.integer import round_scale


class BlockLatent(Latent):
    """The nearest level of a grid, with gradients as in `UniformLatent`.

    Attributes:
        weight: parameter float32 [rows, columns].
        scale: parameter float32 [rows, blocks].
        shift: parameter float32 [rows, blocks], or None.
    """

    multiples: Tensor | None
    shift_multiples: Tensor | None

    def __init__(
        self, weight: Tensor, found: Blocks, grid: Grid, settled: Callable[[Blocks], StoredWeight]
    ) -> None:
        """See the attributes.

        Args:
            weight: [rows, columns].
            found: what it starts from, float32.
            grid: of levels.
            settled: the weight as it is stored, from its numbers.
        """
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.scale = nn.Parameter(found.scale.clone())
        self.shift = None if found.shift is None else nn.Parameter(found.shift.clone())
        self.register_buffer("multiples", found.multiples)
        self.register_buffer("shift_multiples", found.shift_multiples)
        self._grid, self._settled = grid, settled

    def _floats(self, scale: Tensor, shift: Tensor | None, codes: Tensor) -> Blocks:
        return Blocks(codes, scale, shift, self.multiples, self.shift_multiples)

    def forward(self) -> Tensor:
        """Float32 [rows, columns]."""
        shift = None if self.shift is None else as_stored(self.shift)
        held = self._floats(as_stored(self.scale), shift, self.weight)
        rounded: Tensor = _Rounded.apply(self.weight, held.steps(), held.shifts(), self._grid)
        return rounded

    def grids(self) -> list[nn.Parameter]:
        """Scales and shifts."""
        return [self.scale] if self.shift is None else [self.scale, self.shift]

    def step(self) -> float:
        """Mean distance between two levels."""
        levels = self._grid.levels
        apart = (levels[-1] - levels[0]) / (len(levels) - 1)
        steps = self._floats(self.scale.detach(), None, self.weight).steps()
        return apart * float(steps.abs().mean())

    @torch.no_grad()
    def approach(self, target: Tensor) -> None:
        """Each weight goes to where the target's is, but not out of its code's cell."""
        held = self._floats(self.scale, self.shift, self.weight)
        steps, shifts = held.steps(), held.shifts()
        level = self._grid.level(self._grid.nearest(_positions(self.weight, steps, shifts)))
        # Levels that are further apart than one have wider cells, which this does not use.
        wanted = _positions(target.float(), steps, shifts)
        moved = (wanted - level).clamp_(-CELL, CELL).add_(level)
        moved = moved.clamp_(self._grid.levels[0], self._grid.levels[-1]).mul_(steps[..., None])
        if shifts is not None:
            moved += shifts[..., None]
        self.weight.copy_(moved.flatten(1))

    @torch.no_grad()
    def settle(self) -> StoredWeight:
        """Nearest levels at floats rounded to what they are stored as."""
        shift = None if self.shift is None else round_scale(self.shift)
        held = self._floats(round_scale(self.scale), shift, self.weight)
        codes = self._grid.nearest(_positions(self.weight, held.steps(), held.shifts()))
        return self._settled(held._replace(codes=codes.flatten(1).to(torch.int16)))


class _Rounded(torch.autograd.Function):
    """Weights as their codes give them; only what is given is kept for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, steps: Tensor, shifts: Tensor | None, grid: Grid
    ) -> Tensor:
        ctx.save_for_backward(weight, steps, shifts)
        ctx.grid = grid
        values = grid.level(grid.nearest(_positions(weight, steps, shifts))) * steps[..., None]
        return (values if shifts is None else values + shifts[..., None]).flatten(1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        weight, steps, shifts = ctx.saved_tensors
        grid: Grid = ctx.grid
        gradient = gradients[0].unflatten(1, (steps.shape[1], -1))
        position = _positions(weight, steps, shifts)
        inside = (position >= grid.levels[0]) & (position <= grid.levels[-1])
        through = gradient * inside
        levels = grid.level(grid.nearest(position.clone()))
        by_step = (levels * gradient - position * through).sum(2)
        by_shift = None if shifts is None else (gradient - through).sum(2)
        return through.flatten(1), by_step, by_shift, None


def _positions(weight: Tensor, steps: Tensor, shifts: Tensor | None) -> Tensor:
    """Weights in steps, [rows, groups, columns of a group]."""
    grouped = weight.unflatten(1, (steps.shape[1], -1))
    return (grouped if shifts is None else grouped - shifts[..., None]) / steps[..., None]
