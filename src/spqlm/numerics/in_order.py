"""Columns of a weight that are rounded one after the other.

What rounding one got wrong is made up for by those that come later. They are taken a few at a time:
errors reach the columns of the same piece at once, those of the same step behind the piece, and the
rest of the matrix behind the step.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from spqlm.native import columns as native
from spqlm.numerics.blocks import Grid

# Columns of a step, and of a piece at most.
BLOCK = 128


class Affine(NamedTuple):
    """What the codes of some columns stand for: step · level + offset, and nothing if not kept.

    Attributes:
        step: float32 [rows], not zero.
        offset: float32 [rows], or None for 0.
        kept: bool [columns, rows], or None for all.
    """

    step: Tensor
    offset: Tensor | None = None
    kept: Tensor | None = None


def sweep(
    columns: Tensor,
    update: Callable[[slice, slice], Tensor],
    block: int,
    group: int,
    replace: Callable[[slice], Tensor],
) -> None:
    """Replace columns piece by piece; each piece's errors change those that come later.

    Args:
        columns: float32 [columns, rows], where a column lies together. Changed: when a block's turn
            comes, all of it is as earlier ones have left it.
        update: from earlier and later columns to what an error of 1 in an earlier one takes from a
            later one, [earlier, later].
        block: columns that are looked at together when their turn comes.
        group: divides the block; a piece is a group or, of a large one, some of it.
        replace: from a piece to the errors in it, [piece, rows], see `round_columns`.
    """
    count = len(columns)
    step = max(BLOCK // block, 1) * block
    for start in range(0, count, step):
        whole = slice(start, min(start + step, count))
        errors = torch.empty_like(columns[whole])
        for piece in _pieces(whole, group):
            found = replace(piece)
            errors[piece.start - start : piece.stop - start] = found
            _take(columns, update, piece, slice(piece.stop, whole.stop), found)
        _take(columns, update, whole, slice(whole.stop, count), errors)


def _pieces(whole: slice, group: int) -> Iterator[slice]:
    for start in range(whole.start, whole.stop, group):
        stop = min(start + group, whole.stop)
        for first in range(start, stop, BLOCK):
            yield slice(first, min(first + BLOCK, stop))


def _take(
    columns: Tensor,
    update: Callable[[slice, slice], Tensor],
    earlier: slice,
    later: slice,
    errors: Tensor,
) -> None:
    if later.start < later.stop:
        columns[later].addmm_(update(earlier, later).T, errors, alpha=-1)


def round_columns(
    state: Tensor,
    update: Tensor,
    divisors: Tensor,
    grid: Grid,
    affine: Affine,
    start: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Round a piece of columns, one after the other.

    Args:
        state: what columns are before any of them is rounded, float32 [count, rows].
        update: what an error of 1 in a column (first index) takes from one behind it (second),
            float32 [count, count].
        divisors: float32 [count]; an error is the difference that rounding makes over this.
        grid: of the levels.
        affine: of the codes.
        start: what differences are counted from, float32 [count, rows]; None is what a column is
            when its turn comes.

    Returns:
        codes from 0 on, int16, and errors, float32, [count, rows] each.
    """
    ends = grid.levels[0], grid.levels[-1]
    tables = None if grid.even else grid.tables(state.device)
    floats = affine.step, affine.offset
    found = native.round_columns(state, start, update, divisors, floats, affine.kept, ends, tables)
    return found or _one_by_one(state.clone(), update, divisors, grid, affine, start)


def _one_by_one(
    state: Tensor,
    update: Tensor,
    divisors: Tensor,
    grid: Grid,
    affine: Affine,
    start: Tensor | None,
) -> tuple[Tensor, Tensor]:
    codes, errors = torch.empty_like(state, dtype=torch.int16), torch.empty_like(state)
    step, offset, kept = affine
    # As tensors: numbers would have to be waited for on a GPU.
    for column, divisor in enumerate(divisors.unbind()):
        value = state[column]
        code = grid.nearest((value if offset is None else value - offset) / step)
        codes[column] = code
        rounded = grid.level(code).mul_(step)
        if offset is not None:
            rounded.add_(offset)
        if kept is not None:
            rounded.mul_(kept[column])
        error = ((value if start is None else start[column]) - rounded).div_(divisor)
        state[column:].addr_(update[column, column:], error, alpha=-1)
        errors[column] = error
    return codes, errors
