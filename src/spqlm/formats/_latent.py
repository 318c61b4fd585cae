"""A weight while its codes are trained: where each is between two codes, and what places values."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from spqlm.numerics.blocks import Blocks, Grid
from spqlm.numerics.integer import round_scale

if TYPE_CHECKING:
    from spqlm.formats.base import StoredWeight

# Half the width of a code's cell, in codes, and a little less: what rounds to the code for certain.
CELL = 0.49


class Latent(nn.Module):
    """step · level(round(position)) + shift, where a group is kept.

    Positions count codes, from 0 on, so one rate of training suits every width, whatever its scales
    are. Rounding passes gradients straight through (arXiv 1308.3432): a code more is worth the
    distance between the levels around. A position beyond the last codes stays where it is.

    Attributes:
        position: parameter float32 [rows, columns], which starts at the codes.
        scale: parameter float32 [rows, blocks].
        shift: parameter float32 [rows, blocks], or None.
        multiples: buffer of the scales' integers [rows, groups]; None for ones.
        shift_multiples: the same of the shifts.
        keep: bool buffer [rows, groups]; None where every group is.
        held: what `forward` gave, where many passes use it; see `modules.latent.rounded_once`.
    """

    multiples: Tensor | None
    shift_multiples: Tensor | None
    keep: Tensor | None
    held: Tensor | None = None

    def __init__(
        self,
        found: Blocks,
        grid: Grid,
        settled: Callable[[Blocks], "StoredWeight"],
        keep: Tensor | None = None,
        rounded: Callable[[Tensor], Tensor] = round_scale,
    ) -> None:
        """See the attributes.

        Args:
            found: what it starts from, floats in any dtype.
            grid: of levels.
            settled: the weight as it is stored, from its numbers: codes int16, floats float32.
            keep: bool [rows, groups], or None.
            rounded: what scales and shifts are stored as.
        """
        super().__init__()
        self.position = nn.Parameter(found.codes.float())
        self.scale = nn.Parameter(found.scale.float().clone())
        self.shift = None if found.shift is None else nn.Parameter(found.shift.float().clone())
        self.register_buffer("multiples", found.multiples)
        self.register_buffer("shift_multiples", found.shift_multiples)
        self.register_buffer("keep", keep)
        self._grid, self._settled, self._rounded = grid, settled, rounded

    def values(self, dtype: torch.dtype) -> Tensor:
        """What the codes stand for, in the dtype of a product."""
        return self().to(dtype) if self.held is None else self.held

    def forward(self) -> Tensor:
        """What the codes that it has come to stand for, float32 [rows, columns]; differentiable."""
        held = self._blocks(self._as_stored)
        args = self.position, held.steps(), held.shifts(), self.keep, self._grid
        rounded: Tensor = _Rounded.apply(*args)
        return rounded

    def _blocks(self, floats: Callable[[Tensor], Tensor]) -> Blocks:
        shift = None if self.shift is None else floats(self.shift)
        integers = self.multiples, self.shift_multiples
        return Blocks(self.position, floats(self.scale), shift, *integers)

    def grids(self) -> list[nn.Parameter]:
        """What places the values that codes stand for: scales, shifts."""
        return [self.scale] if self.shift is None else [self.scale, self.shift]

    @torch.no_grad()
    def approach(self, target: Tensor) -> None:
        """Each position goes to where the target's would be, but not out of its code's cell.

        What lies beyond its cell, as rounding left it to make up for others, is mirrored at the
        border: at the border itself many would change their codes in the same step.

        Args:
            target: a weight, [rows, columns].
        """
        held, codes = self._blocks(lambda floats: floats), self._grid.code(self.position)
        grouped = target.float().unflatten(1, (held.steps().shape[1], -1))
        shifts = held.shifts()
        grouped = grouped if shifts is None else grouped - shifts[..., None]
        apart = (grouped / held.steps()[..., None]).flatten(1) - self._grid.level(codes)
        away = self._grid.steps_from(codes, apart)
        inside = torch.minimum(away.abs(), (1 - away.abs()).clamp_(min=0)).clamp_(max=CELL)
        moved = inside.mul_(away.sign()).add_(codes).clamp_(0, len(self._grid.levels) - 1)
        if self.keep is not None:
            kept = self.keep.repeat_interleave(self._grid.group, 1)
            moved = torch.where(kept, moved, self.position)
        self.position.copy_(moved)

    @torch.no_grad()
    def settle(self) -> "StoredWeight":
        """The codes that it has come to, at floats rounded to what they are stored as."""
        codes = self._grid.code(self.position).to(torch.int16)
        return self._settled(self._blocks(self._rounded)._replace(codes=codes))

    def _as_stored(self, floats: Tensor) -> Tensor:
        """What they will be rounded to, with the gradient of what they are."""
        return floats + (self._rounded(floats) - floats).detach()


class _Rounded(torch.autograd.Function):
    """Weights as their codes give them; only what is given is kept for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        position: Tensor,
        steps: Tensor,
        shifts: Tensor | None,
        keep: Tensor | None,
        grid: Grid,
    ) -> Tensor:
        ctx.save_for_backward(position, steps, keep)
        ctx.grid, ctx.shifted = grid, shifts is not None
        values = grid.level(grid.code(position)).unflatten(1, (steps.shape[1], -1))
        values = values * steps[..., None]
        if shifts is not None:
            values += shifts[..., None]
        if keep is not None:
            values *= keep[..., None]
        return values.flatten(1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        position, steps, keep = ctx.saved_tensors
        grid: Grid = ctx.grid
        gradient = gradients[0].unflatten(1, (steps.shape[1], -1))
        if keep is not None:
            gradient = gradient * keep[..., None]
        codes = grid.code(position)
        by_step = (grid.level(codes).view_as(gradient) * gradient).sum(2)
        by_shift = gradient.sum(2) if ctx.shifted else None
        inside = (position >= 0) & (position <= len(grid.levels) - 1)
        through = (gradient * steps[..., None]).flatten(1) * inside
        return through * grid.spacing(codes), by_step, by_shift, None, None
