"""A few rows of input times a weight as it is stored: small batches, drafted tokens.

The weight is read once for all rows of input, and the tensor cores multiply. Codes are exact in
every float dtype, and a group's scale multiplies its sum, so only the inputs are in half precision.
"""

import triton
import triton.language as tl

from spqlm.kernels.triton.unpacking import code, pair_codes, row_units, sides, signed


@triton.jit
def few_rows(
    x_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    y_ptr: tl.tensor,
    count: tl.tensor,
    rows: tl.tensor,
    width: tl.tensor,
    scale_row: tl.tensor,
    span: tl.tensor,
    BITS: tl.constexpr,
    NONLINEAR: tl.constexpr,
    DTYPE: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPED: tl.constexpr,
    ROWS: tl.constexpr,
    HEIGHT: tl.constexpr,
    UNROLL: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """Program (i, j) adds `span` groups, from j * span on, to ROWS outputs of all inputs.

    Args:
        x_ptr: [count, width], inputs, or where BITS is given twos of them, each two an integer.
        weight_ptr: rows of floats or of int8 codes, or of bytes of codes in planes.
        scale_ptr: [rows, groups] where GROUPED, else of row i at i * scale_row; or None.
        bias_ptr: [rows] or None.
        y_ptr: [programs j, count, rows].
        count: rows of input.
        rows: outputs.
        width: of a row of x.
        scale_row: from one row's scales to the next row's.
        span: see above, a multiple of UNROLL.
        BITS: of a code in planes, 2 to 7; None for floats and int8 codes.
        NONLINEAR: whether codes in planes are for levels that are denser near zero.
        DTYPE: of an input.
        GROUP: of a row of x at a time, a power of two and at least 16.
        GROUPED: whether weights of these inputs share a scale; only where BITS is given.
        ROWS: a power of two, at least 16.
        HEIGHT: a power of two, at least 16 and `count`.
        UNROLL: groups on their way from memory together.
        PRECISION: of products of float32 inputs: "ieee" or "tf32".
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    item = tl.arange(0, HEIGHT)
    start = weight_ptr + row.to(tl.int64) * (width if BITS is None else row_units(width, BITS))
    there = row < rows
    given = item < count
    total = tl.zeros([HEIGHT, ROWS], tl.float32)
    begin = tl.program_id(1) * span
    for first in range(begin, tl.minimum(begin + span, tl.cdiv(width, GROUP)), UNROLL):
        for step in tl.static_range(UNROLL):
            group = first + step
            column = group * GROUP + tl.arange(0, GROUP)
            within = column < width
            x = tl.load(
                x_ptr + item[:, None] * width + column[None, :],
                mask=given[:, None] & within[None, :],
                other=0,
            )
            wanted = within[:, None] & there[None, :]
            if BITS is None:
                stored = tl.load(start[None, :] + column[:, None], mask=wanted, other=0)
                if weight_ptr.dtype.element_ty == tl.int8:
                    stored = signed(stored)
                total = tl.dot(x, stored.to(DTYPE), total, input_precision=PRECISION)
            else:
                even, odd = sides(x, DTYPE)
                low, high = pair_codes(start[None, :], column[:, None], width, wanted, BITS)
                low, high = code(low, DTYPE, BITS, NONLINEAR), code(high, DTYPE, BITS, NONLINEAR)
                part = tl.dot(even, low, input_precision=PRECISION)
                part = tl.dot(odd, high, part, input_precision=PRECISION)
                if GROUPED:
                    inside = there & (group * GROUP < width)
                    scale = tl.load(scale_ptr + row * scale_row + group, mask=inside, other=0.0)
                    part *= scale.to(tl.float32)[None, :]
                total += part
    if not GROUPED:
        if scale_ptr is not None:
            scale = tl.load(scale_ptr + row * scale_row, mask=there, other=0.0)
            total *= scale.to(tl.float32)[None, :]
    if bias_ptr is not None:
        total += tl.load(bias_ptr + row, mask=there, other=0.0).to(tl.float32)[None, :]
    out = y_ptr + tl.program_id(1).to(tl.int64) * count * rows
    tl.store(
        out + item[:, None] * rows + row[None, :],
        total.to(y_ptr.dtype.element_ty),
        mask=given[:, None] & there[None, :],
    )


@triton.jit
def add_up(
    sums_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    y_ptr: tl.tensor,
    parts: tl.tensor,
    size: tl.tensor,
    rows: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Each program adds the parts of BLOCK outputs, always in the same order.

    Args:
        sums_ptr: float32 [parts, size].
        bias_ptr: [rows] or None.
        y_ptr: [size].
        parts: see sums_ptr.
        size: outputs of all rows of input.
        rows: outputs of one.
        BLOCK: a power of two.
    """
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = place < size
    total = tl.zeros([BLOCK], tl.float32)
    for _ in range(parts):
        total += tl.load(sums_ptr + place, mask=there, other=0.0)
        sums_ptr += size
    if bias_ptr is not None:
        total += tl.load(bias_ptr + place % rows, mask=there, other=0.0).to(tl.float32)
    tl.store(y_ptr + place, total.to(y_ptr.dtype.element_ty), mask=there)
