"""A few rows of input times a weight as it is stored: small batches, drafted tokens.

The weight is read once for all rows of input, and the tensor cores multiply. Codes are exact in
every float dtype, and a group's scale multiplies its sum, so only the inputs are in half precision.
"""

import triton
import triton.language as tl

from spq.kernels.triton.unpacking import nibbles


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
    scale_group: tl.tensor,
    PACKED: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    HEIGHT: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """Each program computes ROWS outputs of all inputs, one group at a time.

    Args:
        x_ptr: [count, in], in the dtype of a float weight, or float32.
        weight_ptr: [rows, width]: floats, int8 codes, or two 4-bit codes to a byte.
        scale_ptr: of element (row, i): at row * scale_row + i // GROUP * scale_group; or None.
        bias_ptr: [rows] or None.
        y_ptr: [count, rows].
        count: rows of input.
        rows: outputs.
        width: stored elements of a row: `in`, or half of it where PACKED.
        scale_row: see scale_ptr.
        scale_group: see scale_ptr.
        PACKED: whether an element is two codes.
        GROUP: stored elements that share a scale, a power of two and at least 16.
        ROWS: a power of two, at least 16.
        HEIGHT: a power of two, at least 16 and `count`.
        PRECISION: of products of float32 inputs: "ieee" or "tf32".
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    item = tl.arange(0, HEIGHT)
    start = weight_ptr + row.to(tl.int64) * width
    there = row < rows
    given = item < count
    total = tl.zeros([HEIGHT, ROWS], tl.float32)
    for group in range(0, tl.cdiv(width, GROUP)):
        column = group * GROUP + tl.arange(0, GROUP)
        within = column < width
        stored = tl.load(
            start[None, :] + column[:, None], mask=within[:, None] & there[None, :], other=0
        )
        if PACKED:
            pair = group * (2 * GROUP) + tl.arange(0, 2 * GROUP)
            x = tl.load(
                x_ptr + item[:, None] * (2 * width) + pair[None, :],
                mask=given[:, None] & (pair < 2 * width)[None, :],
                other=0.0,
            )
            even, odd = tl.split(tl.reshape(x, [HEIGHT, GROUP, 2]))
            low, high = nibbles(stored)
            part = tl.dot(even, low.to(x.dtype), input_precision=PRECISION)
            part = tl.dot(odd, high.to(x.dtype), part, input_precision=PRECISION)
        else:
            x = tl.load(
                x_ptr + item[:, None] * width + column[None, :],
                mask=given[:, None] & within[None, :],
                other=0.0,
            )
            part = tl.dot(x, stored.to(x.dtype), input_precision=PRECISION)
        if scale_ptr is not None:
            place = row * scale_row + group * scale_group
            part *= tl.load(scale_ptr + place, mask=there, other=0.0).to(tl.float32)[None, :]
        total += part
    if bias_ptr is not None:
        total += tl.load(bias_ptr + row, mask=there, other=0.0).to(tl.float32)[None, :]
    tl.store(
        y_ptr + item[:, None] * rows + row[None, :],
        total.to(y_ptr.dtype.element_ty),
        mask=given[:, None] & there[None, :],
    )
