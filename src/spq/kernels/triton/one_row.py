"""One row of input times a weight as it is stored: decoding one token.

Nothing is reused but the input, so what counts is to read the codes once, in wide accesses, with
few instructions for each. That is arithmetic for the ordinary cores, in float32.
"""

import triton
import triton.language as tl

from spq.kernels.triton.unpacking import nibbles


@triton.jit
def one_row(
    x_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    y_ptr: tl.tensor,
    rows: tl.tensor,
    width: tl.tensor,
    scale_row: tl.tensor,
    scale_group: tl.tensor,
    PACKED: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """Each program computes ROWS outputs, GROUPS * GROUP stored elements of each at a time.

    Args:
        x_ptr: [in].
        weight_ptr: [rows, width]: floats, int8 codes, or two 4-bit codes to a byte.
        scale_ptr: of element (row, i): at row * scale_row + i // GROUP * scale_group; or None.
        bias_ptr: [rows] or None.
        y_ptr: [rows].
        rows: outputs.
        width: stored elements of a row: `in`, or half of it where PACKED.
        scale_row: see scale_ptr.
        scale_group: see scale_ptr.
        PACKED: whether an element is two codes.
        GROUP: stored elements that share a scale, a power of two.
        GROUPS: a power of two.
        ROWS: a power of two.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    start = weight_ptr + row.to(tl.int64) * width
    there = row < rows
    total = tl.zeros([ROWS, GROUPS], tl.float32)
    for first in range(0, width, GROUPS * GROUP):
        group = first // GROUP + tl.arange(0, GROUPS)
        column = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
        within = column < width
        stored = tl.load(
            start[:, None, None] + column[None, :, :],
            mask=there[:, None, None] & within[None, :, :],
            other=0,
        )
        if PACKED:
            pair = group[:, None] * (2 * GROUP) + tl.arange(0, 2 * GROUP)[None, :]
            x = tl.load(x_ptr + pair, mask=pair < 2 * width, other=0.0).to(tl.float32)
            even, odd = tl.split(tl.reshape(x, [GROUPS, GROUP, 2]))
            low, high = nibbles(stored)
            part = tl.sum(low * even[None, :, :] + high * odd[None, :, :], axis=2)
        else:
            x = tl.load(x_ptr + column, mask=within, other=0.0).to(tl.float32)
            part = tl.sum(stored.to(tl.float32) * x[None, :, :], axis=2)
        if scale_ptr is not None:
            place = row[:, None] * scale_row + group[None, :] * scale_group
            inside = there[:, None] & (group * GROUP < width)[None, :]
            part *= tl.load(scale_ptr + place, mask=inside, other=0.0).to(tl.float32)
        total += part
    y = tl.sum(total, axis=1)
    if bias_ptr is not None:
        y += tl.load(bias_ptr + row, mask=there, other=0.0).to(tl.float32)
    tl.store(y_ptr + row, y.to(y_ptr.dtype.element_ty), mask=there)
