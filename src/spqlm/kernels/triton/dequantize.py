"""A weight from its codes, for a matrix product with many rows of input."""

import triton
import triton.language as tl

from spqlm.kernels.triton.unpacking import code, kept_bits, nibbles, pair_codes, row_units, signed


@triton.jit
def dequantize(
    weight_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    index_ptr: tl.tensor,
    out_ptr: tl.tensor,
    rows: tl.tensor,
    width: tl.tensor,
    scale_row: tl.tensor,
    BITS: tl.constexpr,
    NONLINEAR: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Program (i, j) writes the j-th BLOCK units of row i; rounded once, at the end.

    Args:
        weight_ptr: rows of int8 codes, or of bytes of codes in planes.
        scale_ptr: [rows, groups], or of row i at i * scale_row where GROUP is None.
        index_ptr: [rows of out], which row of the weight each one is, and NaN for one that is not
            there; or None for all in order.
        out_ptr: [rows of out, in].
        rows: of the weight.
        width: units of a row: columns, or pairs of them where BITS is given.
        scale_row: from one row's scales to the next row's.
        BITS: of a code in planes, 2 to 7; None for int8 codes.
        NONLINEAR: whether codes in planes are for levels that are denser near zero.
        GROUP: units that share a scale; None where all of a row do.
        BLOCK: a power of two.
    """
    element: tl.constexpr = out_ptr.dtype.element_ty
    out = tl.program_id(0)
    row = out if index_ptr is None else tl.load(index_ptr + out)
    there = (row >= 0) & (row < rows)
    row = tl.where(there, row, 0)
    first = tl.program_id(1) * BLOCK
    unit = first + tl.arange(0, BLOCK)
    within = unit < width
    if GROUP is None:
        scale = tl.load(scale_ptr + row * scale_row).to(tl.float32)
    else:
        place = row * scale_row + unit // GROUP
        scale = tl.load(scale_ptr + place, mask=within, other=0.0).to(tl.float32)
    scale = tl.where(there, scale, float("nan"))
    if BITS is None:
        start = weight_ptr + row.to(tl.int64) * width
        values = (signed(tl.load(start + unit, mask=within, other=0)) * scale).to(element)
        tl.store(out_ptr + out.to(tl.int64) * width + unit, values, mask=within)
    else:
        start = weight_ptr + row.to(tl.int64) * row_units(width, BITS)
        even, odd = pair_codes(start, unit, width, within, BITS)
        even = code(even, tl.float32, BITS, NONLINEAR) * scale
        odd = code(odd, tl.float32, BITS, NONLINEAR) * scale
        column = 2 * first + tl.arange(0, 2 * BLOCK)
        place = out.to(tl.int64) * (2 * width) + column
        values = tl.interleave(even, odd).to(element)
        tl.store(out_ptr + place, values, mask=column < 2 * width)


@triton.jit
def dequantize_groups(
    codes_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    zero_ptr: tl.tensor,
    mask_ptr: tl.tensor,
    offsets_ptr: tl.tensor,
    out_ptr: tl.tensor,
    columns: tl.tensor,
    mask_bytes: tl.tensor,
    PACKED: tl.constexpr,
    WIDTH: tl.constexpr,
    GROUPS: tl.constexpr,
) -> None:
    """Program i writes row i of the dense weight.

    Args:
        codes_ptr: [kept, WIDTH].
        scale_ptr: [kept].
        zero_ptr: [kept] or None.
        mask_ptr: [rows, mask_bytes].
        offsets_ptr: int32 [rows + 1].
        out_ptr: [rows, columns].
        columns: inputs.
        mask_bytes: bytes of a row's mask.
        PACKED: whether a stored element is two codes.
        WIDTH: stored elements of a group, a power of two.
        GROUPS: of a row, looked at together, a power of two.
    """
    row = tl.program_id(0)
    before = tl.load(offsets_ptr + row)
    inside = tl.arange(0, WIDTH)
    out = out_ptr + row.to(tl.int64) * columns
    SIZE: tl.constexpr = 2 * WIDTH if PACKED else WIDTH
    for first in range(0, columns // SIZE, GROUPS):
        group = first + tl.arange(0, GROUPS)
        bit = kept_bits(mask_ptr, row, group, mask_bytes)
        kept = bit == 1
        place = (before + tl.cumsum(bit, axis=0) - bit).to(tl.int64)
        stored = tl.load(
            codes_ptr + place[:, None] * WIDTH + inside[None, :], mask=kept[:, None], other=0
        )
        scale = tl.load(scale_ptr + place, mask=kept, other=0.0).to(tl.float32)[:, None]
        zero = tl.zeros([GROUPS, 1], tl.float32)
        if zero_ptr is not None:
            zero += tl.load(zero_ptr + place, mask=kept, other=0.0).to(tl.float32)[:, None]
        column = group[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
        if PACKED:
            low, high = nibbles(stored)
            values = tl.interleave(low * scale + zero, high * scale + zero)
        else:
            values = stored.to(tl.float32) * scale + zero
        tl.store(out + column, values.to(out_ptr.dtype.element_ty), mask=column < columns)
        before += tl.sum(bit, axis=0)
