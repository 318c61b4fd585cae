"""Codes in blocks, as ggml has them: a float for many columns, and small integers for a few each.

A weight is step · level + shift. A level is one of a grid's few integers, evenly spaced or not. A
group of columns shares its step and its shift. Those are a float times an integer, and a block of
several groups shares the floats: step = scale · multiple. Where a block is one group the multiple
is 1. The floats have the eight significant bits of every scale here, so that they are the same
numbers in float16, bfloat16 and float32.

Rounding is GPTQ's: when a block's turn comes its floats are searched, when a group's turn comes its
integers are, and then its columns are rounded one after the other.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from spqlm.numerics.descent import best_scales, descend
from spqlm.numerics.gptq import sweep
from spqlm.numerics.integer import SMALLEST_SCALE, check_scales, round_scale

# Shares of a group's range that its levels are tried over.
SHARES = tuple(1.0 - 0.05 * step for step in range(10))
# Floats, then codes, in turn.
ROUNDS = 2
# Below this share of what it may be, a determinant is that of levels that are all the same.
FLAT = 1e-6
TINY = torch.finfo(torch.float32).tiny


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

    @cached_property
    def even(self) -> bool:
        """Whether levels are one apart."""
        return self.levels[-1] - self.levels[0] == len(self.levels) - 1

    def nearest(self, position: Tensor) -> Tensor:
        """Codes, as whole floats of any shape, of the levels next to weights in steps."""
        if self.even:
            lowest = self.levels[0]
            return (position - lowest).round_().clamp_(0, len(self.levels) - 1)
        borders = self._borders.to(position.device)
        return torch.bucketize(position.contiguous(), borders).to(position.dtype)

    @cached_property
    def _borders(self) -> Tensor:
        pairs = zip(self.levels, self.levels[1:], strict=False)
        return torch.tensor([(a + b) / 2 for a, b in pairs])

    def level(self, codes: Tensor) -> Tensor:
        """What codes, of any dtype, stand for before step and shift; floats as they are given."""
        if self.even:
            return codes + self.levels[0]
        levels = torch.tensor(self.levels, dtype=codes.dtype, device=codes.device)
        return levels[codes.long()]


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
        return _times(self.scale, self.multiples)

    def shifts(self) -> Tensor | None:
        """[rows, groups]."""
        return None if self.shift is None else _times(self.shift, self.shift_multiples)

    def restore(self, grid: Grid) -> Tensor:
        """The weight, in the dtype of its floats; float32 gives ggml's numbers exactly."""
        levels = grid.level(self.codes.to(self.scale.dtype)).unflatten(1, (-1, grid.group))
        values, shifts = levels * self.steps()[..., None], self.shifts()
        return (values if shifts is None else values + shifts[..., None]).flatten(1)


def _times(floats: Tensor, multiples: Tensor | None) -> Tensor:
    if multiples is None:
        return floats
    groups = multiples.to(floats.dtype).unflatten(1, (floats.shape[1], -1))
    return (groups * floats[..., None]).flatten(1)


def round_blocks(weight: Tensor, factor: Tensor, grid: Grid) -> Blocks:
    """Round a weight so that later columns make up for earlier ones.

    Args:
        weight: [rows, columns]; the grid's block divides columns.
        factor: of the metric of errors, see `gptq.inverse_factor`; a diagonal one rounds each
            weight by itself.
        grid: to round to.

    Returns:
        codes and float32 floats.

    Raises:
        ValueError: a weight is not finite, or too large for a scale.
    """
    codes = torch.empty(weight.shape[::-1], dtype=torch.int16, device=weight.device)
    scales: list[Tensor] = []
    shifts: list[Tensor] = []
    integers: list[Tensor] = []
    shift_integers: list[Tensor] = []

    def round_block(
        block: slice, values: Tensor, importance: Tensor
    ) -> Callable[[int, Tensor], Tensor]:
        scale, shift = _floats(values, importance, grid)
        scales.append(scale)
        if shift is not None:
            shifts.append(shift)
        step, offset = scale, shift

        def replace(place: int, value: Tensor) -> Tensor:
            nonlocal step, offset
            if grid.multiples is not None and place % grid.group == 0:
                # What was rounded before has moved them.
                group = slice(place, place + grid.group)
                found = _integers(values[:, group], importance[group], scale, shift, grid)
                integers.append(found[0])
                step = scale * found[0]
                if shift is not None and found[1] is not None:
                    shift_integers.append(found[1])
                    offset = shift * found[1]
            moved = value if offset is None else value - offset
            code = grid.nearest(moved / step)
            codes[block.start + place] = code
            rounded = grid.level(code).mul_(step)
            return rounded if offset is None else rounded.add_(offset)

        return replace

    sweep(weight, factor, grid.block, round_block)
    found = Blocks(
        codes.T.contiguous(),
        torch.stack(scales, 1),
        torch.stack(shifts, 1) if shifts else None,
        torch.stack(integers, 1).to(torch.int16) if integers else None,
        torch.stack(shift_integers, 1).to(torch.int16) if shift_integers else None,
    )
    check_scales(found.scale)
    return found


def improve(weight: Tensor, found: Blocks, hessian: Tensor, grid: Grid) -> Blocks:
    """Better floats and codes in turn; integers stay. See `descent`.

    Args:
        weight: [rows, columns].
        found: to start from, float32.
        hessian: metric of errors [columns, columns], positive definite.
        grid: that they are on.
    """
    weight, hessian = weight.float(), hessian.float()
    for _ in range(ROUNDS):
        found = _best_floats(weight, found, hessian, grid)
        found = found._replace(codes=_best_codes(weight, found, hessian, grid))
    return found


def _best_floats(weight: Tensor, found: Blocks, hessian: Tensor, grid: Grid) -> Blocks:
    """Scales, then shifts, of least error beside everything else."""
    ones, shift, shifts = torch.ones_like(found.scale), found.shift, found.shifts()
    held = found._replace(scale=ones, shift=None).restore(grid)
    if shift is None or shifts is None:
        return found._replace(scale=best_scales(weight, held, found.scale, hessian))
    without = weight - shifts.repeat_interleave(grid.group, 1)
    found = found._replace(scale=best_scales(without, held, found.scale, hessian))
    without = weight - found._replace(shift=None).restore(grid)
    held = _times(ones, found.shift_multiples).repeat_interleave(grid.group, 1)
    return found._replace(shift=best_scales(without, held, shift, hessian))


def _best_codes(weight: Tensor, found: Blocks, hessian: Tensor, grid: Grid) -> Tensor:
    """Codes after one pass over the columns."""
    steps = found.steps().repeat_interleave(grid.group, 1).T.contiguous()
    shifts = found.shifts()
    offsets = None if shifts is None else shifts.repeat_interleave(grid.group, 1).T.contiguous()
    codes = torch.empty_like(found.codes.T, memory_format=torch.contiguous_format)

    def nearest(column: int, best: Tensor) -> Tensor:
        moved = best if offsets is None else best - offsets[column]
        code = grid.nearest(moved / steps[column])
        codes[column] = code
        rounded = grid.level(code).mul_(steps[column])
        return rounded if offsets is None else rounded.add_(offsets[column])

    descend(weight, found.restore(grid).T.contiguous(), hessian, nearest)
    return codes.T.contiguous()


def _floats(values: Tensor, importance: Tensor, grid: Grid) -> tuple[Tensor, Tensor | None]:
    """Scale and shift of a block: [rows, block] -> float32 [rows] each."""
    groups = values.unflatten(1, (-1, grid.group))
    step, shift = search(groups, importance.unflatten(0, (-1, grid.group)), grid)
    if grid.multiples is None:
        only = None if shift is None else round_scale(shift[:, 0])
        return round_scale(step[:, 0]), only
    most = grid.multiples[1]
    return _shared(step, most), None if shift is None else _shared(shift, most)


def _shared(floats: Tensor, most: int) -> Tensor:
    """One float of which all of a row are about a multiple, up to `most`: [rows, n] -> [rows]."""
    largest = floats.gather(1, floats.abs().argmax(1, keepdim=True))
    scale = round_scale(largest / most)
    multiples = (floats / scale).round_()
    fitted = (multiples * floats).sum(1) / multiples.square().sum(1).clamp_min(1.0)
    # The largest float is a multiple that there is, so this moves by half a step at most.
    return round_scale(torch.where(fitted == 0, scale[:, 0], fitted))


def _integers(
    values: Tensor, importance: Tensor, scale: Tensor, shift: Tensor | None, grid: Grid
) -> tuple[Tensor, Tensor | None]:
    """Multiples of a group: [rows, group] -> whole floats [rows] each."""
    assert grid.multiples is not None
    step, offset = search(values[:, None], importance[None], grid)
    multiple = _multiple(step[:, 0] / scale, grid.multiples)
    if shift is None or offset is None:
        return multiple, None
    # Of least error beside the step as it is now.
    step = (scale * multiple)[:, None]
    levels = grid.level(grid.nearest((values - offset) / step))
    best = ((values - step * levels) * importance).sum(1) / importance.sum()
    return multiple, (best / shift).round_().clamp_(0, grid.multiples[1])


def _multiple(wanted: Tensor, limits: tuple[int, int]) -> Tensor:
    """Whole numbers within limits, never zero."""
    least, most = limits
    whole = wanted.round().clamp_(least, most)
    return torch.where(whole == 0, torch.where((wanted < 0) & (least < 0), -1.0, 1.0), whole)


def search(values: Tensor, cost: Tensor, grid: Grid) -> tuple[Tensor, Tensor | None]:
    """Steps and shifts of the least weighted squared error.

    Levels are laid over the whole range of a group, and over less and less of it; each time step
    and shift follow from the codes by least squares.

    Args:
        values: float32 [rows, groups, columns].
        cost: of an error in each column, float32 [groups, columns], positive.
        grid: of levels.

    Returns:
        float32 [rows, groups], not zero; and the same for shifts, at most zero, or None.
    """
    lowest, highest = grid.levels[0], grid.levels[-1]
    if grid.shifted:
        low, high = values.amin(2).clamp_max_(0), values.amax(2)
        whole, middle = (high - low) / (highest - lowest), (low + high) / 2
    else:
        largest = values.gather(2, values.abs().argmax(2, keepdim=True))[..., 0]
        whole = largest / lowest
        middle = None
    whole = torch.where(whole.abs() < SMALLEST_SCALE, SMALLEST_SCALE, whole)
    best = torch.full_like(whole, torch.inf)
    step, shift = whole, middle
    sums = _Sums(values, cost, shifted=grid.shifted)
    for share in SHARES:
        tried = whole * share
        moved = values
        if middle is not None:
            moved = values - (middle - tried * ((lowest + highest) / 2))[..., None]
        levels = grid.level(grid.nearest(moved / tried[..., None]))
        error, found, offset = sums.fitted(levels, tried)
        better = error < best
        best = torch.where(better, error, best)
        step = torch.where(better, found, step)
        if shift is not None and offset is not None:
            shift = torch.where(better, offset, shift)
    step = torch.where(step.abs() < SMALLEST_SCALE, SMALLEST_SCALE, step)
    return step, shift


class _Sums:
    """Least squares of values by levels, group by group."""

    def __init__(self, values: Tensor, cost: Tensor, *, shifted: bool) -> None:
        self._cost, self._shifted = cost, shifted
        self._weighted = values * cost
        self._ones = cost.sum(1)
        self._values = self._weighted.sum(2)

    def fitted(self, levels: Tensor, tried: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Error less what no fit changes, step and shift, each [rows, groups].

        Args:
            levels: [rows, groups, columns].
            tried: the step that they come from, [rows, groups].
        """
        by_levels = (self._weighted * levels).sum(2)
        costly = levels * self._cost
        squares = (costly * levels).sum(2)
        alone = by_levels / squares.clamp_min(TINY)
        if not self._shifted:
            return -alone * by_levels, alone, None
        sums = costly.sum(2)
        determinant = self._ones * squares - sums.square()
        step = (self._ones * by_levels - sums * self._values) / determinant
        # Where all levels are the same, or the values fall as levels rise.
        step = torch.where((determinant > FLAT * self._ones * squares) & (step > 0), step, tried)
        shift = (self._values - step * sums) / self._ones
        step = torch.where(shift > 0, torch.where(alone > 0, alone, tried), step)
        shift = shift.clamp_max_(0)
        error = step * (step * squares + 2 * (shift * sums - by_levels))
        return error + shift * (shift * self._ones - 2 * self._values), step, shift
