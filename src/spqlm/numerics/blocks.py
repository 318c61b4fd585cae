"""Codes in blocks, as ggml has them: a float for many columns, and small integers for a few each.

A weight is step · level + shift. A level is one of a grid's few integers, evenly spaced or not. A
group of columns shares its step and its shift. Those are a float times an integer, and a block of
several groups shares the floats: step = scale · multiple. Where a block is one group the multiple
is 1. The floats have the eight significant bits of every scale here, so that they are the same
numbers in float16, bfloat16 and float32.
"""

from dataclasses import dataclass
from functools import cache, cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from spqlm.numerics.integer import code_range

# Below so many positions a search among borders is faster than a table.
FEW = 1024


@dataclass(frozen=True)
class Grid:
    """What a code may stand for.

    Attributes:
        levels: ascending integers.
        block: columns that share floats.
        group: columns that share integers; divides the block.
        shifted: whether there are shifts, which are negative or zero.
        multiples: least and largest integer of a group; None where a block is one group.
    """

    levels: tuple[int, ...]
    block: int
    group: int
    shifted: bool = False
    multiples: tuple[int, int] | None = None

    @property
    def even(self) -> bool:
        """Whether levels are one apart."""
        return self.levels[-1] - self.levels[0] == len(self.levels) - 1

    def nearest(self, position: Tensor) -> Tensor:
        """Codes of the levels next to weights in steps, whole floats or int64, of any shape."""
        if self.even:
            lowest, highest = self.levels[0], self.levels[-1]
            return position.round().clamp_(lowest, highest).sub_(lowest)
        if position.numel() < FEW:
            return torch.bucketize(position.contiguous(), self._borders.to(position.device))
        return self._looked_up(position, _of_halves(self, position.device)[0])

    def nearest_level(self, position: Tensor) -> Tensor:
        """`level` of `nearest`, floats of the same shape."""
        if self.even:
            return self.nearest(position).add_(self.levels[0])
        if position.numel() < FEW:
            return self.level(self.nearest(position))
        return self._looked_up(position, _of_halves(self, position.device)[1])

    def _looked_up(self, position: Tensor, table: Tensor) -> Tensor:
        """Entries of a table by positions that are rounded up to halves, from the lowest level on.

        Every border between levels is a half, so the nearest one depends on nothing else.
        """
        low, high = 2 * self.levels[0], 2 * self.levels[-1]
        halves = (position.reshape(-1) * 2).ceil_().clamp_(low, high).sub_(low)
        # NaN becomes some integer.
        index = halves.int().clamp_(0, high - low)
        return table.index_select(0, index).view(position.shape)

    def tables(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """By halves from the lowest level on: codes, int32, and levels, float32, of the nearest."""
        codes, levels = _of_halves(self, device)
        return codes.int(), levels

    def at_random(self, position: Tensor, generator: torch.Generator) -> Tensor:
        """Codes of the level below or above weights in steps, right on average.

        Args:
            position: float32, of any shape; beyond the levels the last one is taken.
            generator: on the device of `position`.

        Returns:
            int64, such that E[level] is the position.
        """
        levels = torch.tensor(self.levels, dtype=position.dtype, device=position.device)
        above = torch.bucketize(position.contiguous(), levels).clamp_(1, len(levels) - 1)
        low, high = levels[above - 1], levels[above]
        noise = torch.rand(position.shape, generator=generator, device=position.device)
        return above - (noise >= (position - low) / (high - low)).long()

    @cached_property
    def _borders(self) -> Tensor:
        pairs = zip(self.levels, self.levels[1:], strict=False)
        return torch.tensor([(a + b) / 2 for a, b in pairs])

    def level(self, codes: Tensor) -> Tensor:
        """What codes stand for before step and shift, floats: as codes are, or float32."""
        if self.even:
            return codes + self.levels[0]
        dtype = codes.dtype if codes.is_floating_point() else torch.float32
        table = _table(self.levels, dtype, codes.device)
        return table.index_select(0, codes.reshape(-1).int()).view(codes.shape)

    def code(self, position: Tensor) -> Tensor:
        """The codes that positions between codes round to, whole floats of the same shape."""
        return position.round().clamp_(0, len(self.levels) - 1)

    def spacing(self, codes: Tensor) -> Tensor:
        """Mean distance from the levels of codes to those beside them, floats as `level` gives."""
        if self.even:
            return torch.ones_like(codes)
        gaps = [b - a for a, b in zip(self.levels, self.levels[1:], strict=False)]
        pairs = zip([gaps[0], *gaps], [*gaps, gaps[-1]], strict=True)
        means = tuple((below + above) / 2 for below, above in pairs)
        return _table(means, codes.dtype, codes.device)[codes.long()]

    def steps_from(self, codes: Tensor, apart: Tensor) -> Tensor:
        """How many codes away lies what is so far from the levels of codes, within a code of them.

        Args:
            codes: whole floats of any shape.
            apart: distances in the units of levels, of either sign, of that shape.

        Returns:
            floats of that shape; beyond the next level they go on at the same pace.
        """
        if self.even:
            return apart.clone()
        gaps = [b - a for a, b in zip(self.levels, self.levels[1:], strict=False)]
        above = _table((*gaps, gaps[-1]), codes.dtype, codes.device)
        below = _table((gaps[0], *gaps), codes.dtype, codes.device)
        index = codes.long()
        return torch.where(apart > 0, apart / above[index], apart / below[index])


@cache
def _of_halves(grid: Grid, device: torch.device) -> tuple[Tensor, Tensor]:
    """By halves from the lowest level on: codes, int64, and levels, float32, of what is nearest."""
    halves = torch.arange(2 * grid.levels[0], 2 * grid.levels[-1] + 1)
    codes = torch.bucketize(halves / 2, grid._borders).to(device)
    return codes, _table(grid.levels, torch.float32, device)[codes]


@cache
def _table(levels: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(levels, dtype=dtype, device=device)


@cache
def even_grid(bits: int, group: int) -> Grid:
    """Of all codes of so many bits, one apart, with a float for each group of columns."""
    low, high = code_range(bits)
    return Grid(levels=tuple(range(low, high + 1)), block=group, group=group)


class Blocks(NamedTuple):
    """A weight [rows, columns] on a grid.

    Attributes:
        codes: int16 [rows, columns], from 0 on.
        scale: float [rows, blocks], not zero.
        shift: float [rows, blocks], not zero, or None.
        multiples: int8 or int16 [rows, groups] of the scales, not zero; None for ones.
        shift_multiples: the same of the shifts, from 0 on.
    """

    codes: Tensor
    scale: Tensor
    shift: Tensor | None
    multiples: Tensor | None
    shift_multiples: Tensor | None

    def steps(self) -> Tensor:
        """[rows, groups]."""
        return times(self.scale, self.multiples)

    def shifts(self) -> Tensor | None:
        """[rows, groups]."""
        return None if self.shift is None else times(self.shift, self.shift_multiples)

    def restore(self, grid: Grid) -> Tensor:
        """The weight, in the dtype of its floats; float32 gives ggml's numbers exactly."""
        levels = grid.level(self.codes.to(self.scale.dtype)).unflatten(1, (-1, grid.group))
        values, shifts = levels * self.steps()[..., None], self.shifts()
        return (values if shifts is None else values + shifts[..., None]).flatten(1)


def times(floats: Tensor, multiples: Tensor | None) -> Tensor:
    """Floats [rows, blocks] times the integers of their groups: [rows, groups]."""
    if multiples is None:
        return floats
    groups = multiples.to(floats.dtype).unflatten(1, (floats.shape[1], -1))
    return (groups * floats[..., None]).flatten(1)
