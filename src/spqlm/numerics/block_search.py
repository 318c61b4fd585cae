"""Where to lay the levels of a grid: steps and shifts of groups, by weighted least squares."""

import torch
from torch import Tensor

from spqlm.numerics.blocks import Grid
from spqlm.numerics.integer import SMALLEST_SCALE

# Shares of a group's range that its levels are tried over.
SHARES = tuple(1.0 - 0.05 * step for step in range(10))
# Weights at several shares that are tried together: few ones take as long as one share of them.
AT_ONCE = 1 << 17
# Below this share of what it may be, a determinant is that of levels that are all the same.
FLAT = 1e-6
TINY = torch.finfo(torch.float32).tiny


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
    every = torch.tensor(SHARES, device=values.device)[:, None, None]
    for shares in every.split(max(AT_ONCE // max(values.numel(), 1), 1)):
        tried = whole * shares
        moved = values
        if middle is not None:
            moved = values - (middle - tried * ((lowest + highest) / 2))[..., None]
        levels = grid.nearest_level(moved / tried[..., None])
        errors, found, offsets = sums.fitted(levels, tried)
        for place, error in enumerate(errors):
            better = error < best
            best = torch.where(better, error, best)
            step = torch.where(better, found[place], step)
            if shift is not None and offsets is not None:
                shift = torch.where(better, offsets[place], shift)
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
        """Error less what no fit changes, step and shift, each [shares, rows, groups].

        Args:
            levels: [shares, rows, groups, columns].
            tried: the steps that they come from, [shares, rows, groups].
        """
        by_levels = (self._weighted * levels).sum(3)
        costly = levels * self._cost
        squares = (costly * levels).sum(3)
        alone = by_levels / squares.clamp_min(TINY)
        if not self._shifted:
            return -alone * by_levels, alone, None
        sums = costly.sum(3)
        determinant = self._ones * squares - sums.square()
        step = (self._ones * by_levels - sums * self._values) / determinant
        # Where all levels are the same, or the values fall as levels rise.
        step = torch.where((determinant > FLAT * self._ones * squares) & (step > 0), step, tried)
        shift = (self._values - step * sums) / self._ones
        step = torch.where(shift > 0, torch.where(alone > 0, alone, tried), step)
        shift = shift.clamp_max_(0)
        error = step * (step * squares + 2 * (shift * sums - by_levels))
        return error + shift * (shift * self._ones - 2 * self._values), step, shift
