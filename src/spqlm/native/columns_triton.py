"""Rounding column after column on a GPU: all rows and columns of a piece in one launch.

Importing this module imports Triton, so it is imported only where such a tensor arrives.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

WHOLE = tl.constexpr(1.5 * 2**23)
"""Added and taken off again, it rounds to the nearest integer, and halves to the even one."""
ROWS = 16
"""Of a program: a weight of a few hundred rows then occupies a GPU's every processor."""


@triton.jit
def columns_in_order(
    state_ptr: tl.tensor,
    start_ptr: tl.tensor,
    update_ptr: tl.tensor,
    divisors_ptr: tl.tensor,
    step_ptr: tl.tensor,
    offset_ptr: tl.tensor,
    kept_ptr: tl.tensor,
    code_at_ptr: tl.tensor,
    level_at_ptr: tl.tensor,
    codes_ptr: tl.tensor,
    errors_ptr: tl.tensor,
    count: tl.tensor,
    rows: tl.tensor,
    lowest: tl.tensor,
    highest: tl.tensor,
    STARTED: tl.constexpr,
    OFFSET: tl.constexpr,
    KEPT: tl.constexpr,
    EVEN: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """Program i rounds ROWS rows; what the columns are stays in its registers.

    Args:
        state_ptr: float32 [count, rows].
        start_ptr: float32 [count, rows], where STARTED.
        update_ptr: float32 [count, count].
        divisors_ptr: float32 [count].
        step_ptr: float32 [rows].
        offset_ptr: float32 [rows], where OFFSET.
        kept_ptr: uint8 [count, rows], where KEPT.
        code_at_ptr: int32, by halves from the lowest level on; not where EVEN.
        level_at_ptr: float32, as code_at_ptr.
        codes_ptr: int16 [count, rows].
        errors_ptr: float32 [count, rows].
        count: columns.
        rows: of each.
        lowest: level.
        highest: level.
        STARTED: whether differences are counted from start_ptr.
        OFFSET: whether there is one.
        KEPT: whether some entries become nothing.
        EVEN: whether levels are one apart.
        COLUMNS: a power of two, at least `count`.
        ROWS: a power of two.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    column = tl.arange(0, COLUMNS)
    places = column[None, :].to(tl.int64) * rows + row[:, None]
    state = tl.load(state_ptr + places, mask=inside[:, None] & (column < count)[None, :], other=0.0)
    step = tl.load(step_ptr + row, mask=inside, other=1.0)
    offset = tl.zeros([ROWS], tl.float32)
    if OFFSET:
        offset = tl.load(offset_ptr + row, mask=inside, other=0.0)
    for j in range(count):
        place = row.to(tl.int64) + j * rows
        value = tl.sum(tl.where((column == j)[None, :], state, 0.0), axis=1)
        position = (value - offset) / step
        if EVEN:
            within = tl.minimum(tl.maximum(position, lowest), highest)
            level = (within + WHOLE) - WHOLE
            code = tl.minimum(tl.maximum(level.to(tl.int32) - lowest, 0), highest - lowest)
        else:
            halves = tl.minimum(tl.maximum(2 * position, 2 * lowest), 2 * highest)
            near = (halves + WHOLE) - WHOLE
            up = tl.where(near < halves, near + 1.0, near).to(tl.int32) - 2 * lowest
            # NaN becomes some integer.
            up = tl.minimum(tl.maximum(up, 0), 2 * (highest - lowest))
            level = tl.load(level_at_ptr + up)
            code = tl.load(code_at_ptr + up)
        rounded = level * step + offset
        if KEPT:
            rounded *= tl.load(kept_ptr + place, mask=inside, other=0).to(tl.float32)
        source = value
        if STARTED:
            source = tl.load(start_ptr + place, mask=inside, other=0.0)
        error = (source - rounded) / tl.load(divisors_ptr + j)
        tl.store(codes_ptr + place, code.to(tl.int16), mask=inside)
        tl.store(errors_ptr + place, error, mask=inside)
        later = (column > j) & (column < count)
        by = tl.load(update_ptr + j * count + column, mask=later, other=0.0)
        state = tl.where(later[None, :], state - by[None, :] * error[:, None], state)


def round_columns(parts: list[Tensor | None], levels: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """What `columns.round_columns` says.

    Args:
        parts: what it is given, in order; each without gaps, on one GPU.
        levels: the lowest and the highest.

    Returns:
        int16 codes and float32 errors, [count, rows] each.
    """
    state = parts[0]
    assert state is not None
    count, rows = state.shape
    codes, errors = torch.empty_like(state, dtype=torch.int16), torch.empty_like(state)
    # What is not there is not read.
    places = [state if part is None else part for part in parts]
    with torch.cuda.device_of(state):
        columns_in_order[(triton.cdiv(rows, ROWS),)](
            *places,
            codes,
            errors,
            count,
            rows,
            *levels,
            STARTED=parts[1] is not None,
            OFFSET=parts[5] is not None,
            KEPT=parts[6] is not None,
            EVEN=parts[-1] is None,
            COLUMNS=triton.next_power_of_2(count),
            ROWS=ROWS,
        )
    return codes, errors
