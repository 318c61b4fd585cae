"""Many rows of input times a weight as it is stored: prompts, training, large batches.

A tile of codes becomes numbers in registers and meets its inputs on tensor cores; the weight is
never written to memory. The weight stands on the left of the product, since that is the side which
Hopper's tensor cores take from registers.
"""

import triton
import triton.language as tl

from spqlm.kernels.triton.unpacking import code, pair_codes, row_units, signed

STRIP = tl.constexpr(8)
"""Tiles of inputs that meet a tile of the weight one after the other, while it is in the cache."""


@triton.jit
def many_rows(
    x_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    y_ptr: tl.tensor,
    count: tl.tensor,
    rows: tl.tensor,
    width: tl.tensor,
    scale_row: tl.tensor,
    BITS: tl.constexpr,
    NONLINEAR: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    HEIGHT: tl.constexpr,
    DEPTH: tl.constexpr,
) -> None:
    """Each program computes ROWS outputs of HEIGHT inputs, DEPTH columns at a time.

    Weights are codes times scales, rounded to the dtype of the inputs, as when they are written
    out; where all of a row share a scale it multiplies the sum, and nothing is rounded.

    Args:
        x_ptr: [count, in], in half precision.
        weight_ptr: rows of int8 codes, or of bytes of codes in planes.
        scale_ptr: [rows, groups], or of row i at i * scale_row where GROUP is None.
        bias_ptr: [rows] or None.
        y_ptr: [count, rows].
        count: rows of input.
        rows: outputs.
        width: units of a row: columns, or pairs of them where BITS is given.
        scale_row: from one row's scales to the next row's.
        BITS: of a code in planes, 2 to 7; None for int8 codes.
        NONLINEAR: whether codes in planes are for levels that are denser near zero.
        GROUP: columns that share a scale, a multiple of DEPTH; None where all of a row do.
        ROWS: a power of two.
        HEIGHT: a power of two.
        DEPTH: a power of two.
    """
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    j, i = tl.program_id(0), tl.program_id(1)
    i, j = tl.swizzle2d(i, j, tl.num_programs(1), tl.num_programs(0), STRIP)
    row = j * ROWS + tl.arange(0, ROWS)
    item = i * HEIGHT + tl.arange(0, HEIGHT)
    there, given = (row < rows)[:, None], (item < count)[None, :]
    columns = width if BITS is None else 2 * width
    units = width if BITS is None else row_units(width, BITS)
    start = weight_ptr + row.to(tl.int64)[:, None] * units
    inputs = x_ptr + item.to(tl.int64)[None, :] * columns
    total = tl.zeros([ROWS, HEIGHT], tl.float32)
    for first in range(0, columns, DEPTH):
        column = first + tl.arange(0, DEPTH)
        x = tl.load(inputs + column[:, None], mask=given & (column < columns)[:, None], other=0.0)
        if BITS is None:
            inside = there & (column < columns)[None, :]
            weight = signed(tl.load(start + column[None, :], mask=inside, other=0)).to(DTYPE)
        else:
            pair = first // 2 + tl.arange(0, DEPTH // 2)
            inside = there & (pair < width)[None, :]
            even, odd = pair_codes(start, pair[None, :], width, inside, BITS)
            even, odd = code(even, DTYPE, BITS, NONLINEAR), code(odd, DTYPE, BITS, NONLINEAR)
            weight = tl.interleave(even, odd)
        if GROUP is not None:
            place = row[:, None] * scale_row + first // GROUP
            scale = tl.load(scale_ptr + place, mask=there, other=0.0)
            if scale_ptr.dtype.element_ty == DTYPE:
                weight *= scale
            else:
                weight = (weight.to(tl.float32) * scale.to(tl.float32)).to(DTYPE)
        total = tl.dot(weight, x, total)
    if GROUP is None:
        scale = tl.load(scale_ptr + row[:, None] * scale_row, mask=there, other=0.0)
        total *= scale.to(tl.float32)
    if bias_ptr is not None:
        total += tl.load(bias_ptr + row[:, None], mask=there, other=0.0).to(tl.float32)
    place = item.to(tl.int64)[None, :] * rows + row[:, None]
    tl.store(y_ptr + place, total.to(y_ptr.dtype.element_ty), mask=there & given)
