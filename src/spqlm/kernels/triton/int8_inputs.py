"""int8 codes times inputs that are rounded to int8 as they come, multiplied as integers."""

import triton
import triton.language as tl

from spqlm.kernels.triton.many_rows import STRIP

LEVELS = tl.constexpr(127.0)
LEAST = tl.constexpr(2.0**-126)
"""A step that can be divided by, where all of a row is zero."""
WHOLE = tl.constexpr(1.5 * 2**23)
"""Added and taken off again, it rounds to the nearest integer, and halves to the even one."""


@triton.jit
def round_rows(
    x_ptr: tl.tensor,
    codes_ptr: tl.tensor,
    step_ptr: tl.tensor,
    columns: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Program i rounds row i to multiples of a step of its own: the largest |x| / 127.

    Args:
        x_ptr: [count, columns].
        codes_ptr: int8 [count, columns].
        step_ptr: float32 [count]; NaN for a row with NaN in it.
        columns: inputs of a row.
        BLOCK: of them at a time, a power of two.
    """
    row = tl.program_id(0)
    start = row.to(tl.int64) * columns
    most = tl.zeros([BLOCK], tl.float32)
    wrong = tl.zeros([BLOCK], tl.int32)
    for first in range(0, columns, BLOCK):
        column = first + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + start + column, mask=column < columns, other=0.0).to(tl.float32)
        most = tl.maximum(most, tl.abs(x))
        wrong |= (x != x).to(tl.int32)
    step = tl.maximum(tl.max(most, axis=0) / LEVELS, LEAST)
    found = tl.where(tl.max(wrong, axis=0) > 0, float("nan"), step)
    tl.store(step_ptr + row, found)
    for first in range(0, columns, BLOCK):
        column = first + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + start + column, mask=column < columns, other=0.0).to(tl.float32)
        code = (x / step + WHOLE) - WHOLE
        tl.store(codes_ptr + start + column, code.to(tl.int8), mask=column < columns)


@triton.jit
def int8_by_int8(
    x_ptr: tl.tensor,
    step_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    y_ptr: tl.tensor,
    count: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    scale_row: tl.tensor,
    ROWS: tl.constexpr,
    HEIGHT: tl.constexpr,
    DEPTH: tl.constexpr,
) -> None:
    """Each program computes ROWS outputs of HEIGHT inputs; sums are exact.

    Args:
        x_ptr: int8 [count, columns], inputs.
        step_ptr: float32 [count], what an input's codes are multiples of.
        weight_ptr: int8 [rows, columns].
        scale_ptr: of row i at i * scale_row.
        bias_ptr: [rows] or None.
        y_ptr: [count, rows].
        count: rows of input.
        rows: outputs.
        columns: inputs of a row, below 2^17, so that sums fit 32 bits.
        scale_row: see scale_ptr.
        ROWS: a power of two.
        HEIGHT: a power of two.
        DEPTH: columns at a time, a power of two.
    """
    j, i = tl.program_id(0), tl.program_id(1)
    i, j = tl.swizzle2d(i, j, tl.num_programs(1), tl.num_programs(0), STRIP)
    row = j * ROWS + tl.arange(0, ROWS)
    item = i * HEIGHT + tl.arange(0, HEIGHT)
    there, given = row < rows, item < count
    start = weight_ptr + row.to(tl.int64)[None, :] * columns
    inputs = x_ptr + item.to(tl.int64)[:, None] * columns
    total = tl.zeros([HEIGHT, ROWS], tl.int32)
    for first in range(0, columns, DEPTH):
        column = first + tl.arange(0, DEPTH)
        within = column < columns
        x = tl.load(inputs + column[None, :], mask=given[:, None] & within[None, :], other=0)
        codes = tl.load(start + column[:, None], mask=there[None, :] & within[:, None], other=0)
        total = tl.dot(x, codes, total, out_dtype=tl.int32)
    step = tl.load(step_ptr + item, mask=given, other=0.0)
    scale = tl.load(scale_ptr + row * scale_row, mask=there, other=0.0).to(tl.float32)
    y = total.to(tl.float32) * step[:, None] * scale[None, :]
    if bias_ptr is not None:
        y += tl.load(bias_ptr + row, mask=there, other=0.0).to(tl.float32)[None, :]
    place = item.to(tl.int64)[:, None] * rows + row[None, :]
    tl.store(y_ptr + place, y.to(y_ptr.dtype.element_ty), mask=given[:, None] & there[None, :])
