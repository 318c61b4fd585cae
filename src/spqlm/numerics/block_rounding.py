"""GPTQ inside the grids of blocks (`numerics.blocks`), and what improves its result.

When a block's turn comes its floats are searched, when a group's turn comes its integers are, and
then its columns are rounded one after the other.
"""

import torch
from torch import Tensor

from spqlm.numerics.block_search import search
from spqlm.numerics.blocks import Blocks, Grid, times
from spqlm.numerics.descent import ROUNDS, best_scales, descend
from spqlm.numerics.gptq import sweep
from spqlm.numerics.in_order import Affine
from spqlm.numerics.integer import check_scales, round_scale

# Of steps, and of shifts where there are some.
Parts = tuple[Tensor, Tensor | None]


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
    # Scales and shifts, and then the integers of each.
    floats: list[Parts] = []
    integers: list[Parts] = []

    def round_piece(columns: Tensor, piece: slice, importance: Tensor) -> tuple[Grid, Affine]:
        if piece.start % grid.block == 0:
            block = slice(piece.start, piece.start + grid.block)
            floats.append(_floats(columns[block].T.contiguous(), importance[block], grid))
        if grid.multiples is None:
            return grid, Affine(*floats[-1])
        if piece.start % grid.group == 0:
            # What was rounded before has moved them.
            group = slice(piece.start, piece.start + grid.group)
            values = columns[group].T.contiguous()
            found = _integers(values, importance[group], *floats[-1], grid)
            integers.append(found)
        return grid, Affine(*_product(floats[-1], integers[-1]))

    codes = sweep(weight, factor, grid.block, round_piece, grid.group)
    (scale, shift), (multiples, shift_multiples) = _together(floats), _together(integers)
    for part in (scale, shift):
        check_scales(torch.zeros(1) if part is None else part)
    assert scale is not None
    return Blocks(codes, scale, shift, _whole(multiples), _whole(shift_multiples))


def _product(floats: Parts, integers: Parts) -> Parts:
    (scale, shift), (multiple, other) = floats, integers
    return scale * multiple, None if shift is None or other is None else shift * other


def _together(parts: list[Parts]) -> tuple[Tensor | None, Tensor | None]:
    """[rows] each -> [rows, count]; None where there are none."""
    if not parts:
        return None, None
    first = torch.stack([part for part, _ in parts], 1)
    second = [part for _, part in parts if part is not None]
    return first, torch.stack(second, 1) if second else None


def _whole(integers: Tensor | None) -> Tensor | None:
    return None if integers is None else integers.to(torch.int16)


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
        found = found._replace(codes=best_codes(weight, found, hessian, grid))
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
    held = times(ones, found.shift_multiples).repeat_interleave(grid.group, 1)
    return found._replace(shift=best_scales(without, held, shift, hessian))


def best_codes(weight: Tensor, found: Blocks, hessian: Tensor, grid: Grid) -> Tensor:
    """Codes after one pass over the columns, in which each makes the best of the others.

    Args:
        weight: float32 [rows, columns].
        found: to start from, float32.
        hessian: metric of errors, float32 [columns, columns], positive definite.
        grid: that they are on.

    Returns:
        int16 [rows, columns], from 0 on.
    """
    shifts = found.shifts()
    steps = found.steps().T.contiguous()
    offsets = None if shifts is None else shifts.T.contiguous()

    def affine(group: int) -> Affine:
        return Affine(steps[group], None if offsets is None else offsets[group])

    return descend(weight, found.restore(grid).T.contiguous(), hessian, grid, affine)


def _floats(values: Tensor, importance: Tensor, grid: Grid) -> Parts:
    """Scale and shift of a block: [rows, block] -> float32 [rows] each."""
    groups = values.unflatten(1, (-1, grid.group))
    step, shift = search(groups, importance.unflatten(0, (-1, grid.group)), grid)
    if grid.multiples is None:
        only = None if shift is None else round_scale(shift[:, 0], checked=False)
        return round_scale(step[:, 0], checked=False), only
    most = grid.multiples[1]
    return _shared(step, most), None if shift is None else _shared(shift, most)


def _shared(floats: Tensor, most: int) -> Tensor:
    """One float of which all of a row are about a multiple, up to `most`: [rows, n] -> [rows]."""
    largest = floats.gather(1, floats.abs().argmax(1, keepdim=True))
    scale = round_scale(largest / most, checked=False)
    multiples = (floats / scale).round_()
    fitted = (multiples * floats).sum(1) / multiples.square().sum(1).clamp_min(1.0)
    # The largest float is a multiple that there is, so this moves by half a step at most.
    return round_scale(torch.where(fitted == 0, scale[:, 0], fitted), checked=False)


def _integers(
    values: Tensor, importance: Tensor, scale: Tensor, shift: Tensor | None, grid: Grid
) -> Parts:
    """Multiples of a group: [rows, group] -> whole floats [rows] each."""
    assert grid.multiples is not None
    step, offset = search(values[:, None], importance[None], grid)
    multiple = _multiple(step[:, 0] / scale, grid.multiples)
    if shift is None or offset is None:
        return multiple, None
    # Of least error beside the step as it is now.
    step = (scale * multiple)[:, None]
    levels = grid.nearest_level((values - offset) / step)
    best = ((values - step * levels) * importance).sum(1) / importance.sum()
    return multiple, (best / shift).round_().clamp_(0, grid.multiples[1])


def _multiple(wanted: Tensor, limits: tuple[int, int]) -> Tensor:
    """Whole numbers within limits, never zero."""
    least, most = limits
    whole = wanted.round().clamp_(least, most)
    return torch.where(whole == 0, torch.where((wanted < 0) & (least < 0), -1.0, 1.0), whole)
