"""A weight from its codes, for a matrix product with many rows of input."""

import triton
import triton.language as tl

from spqlm.kernels.triton.unpacking import kept_bits, nibbles, signed


@triton.jit
def dequantize(
    weight_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    out_ptr: tl.tensor,
    width: tl.tensor,
    scale_row: tl.tensor,
    PACKED: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Program (i, j) writes the j-th BLOCK stored elements of row i; rounded once, at the end.

    Args:
        weight_ptr: [rows, width]: int8 codes, or two 4-bit codes to a byte.
        scale_ptr: [rows, groups] where PACKED, else of row i at i * scale_row.
        out_ptr: [rows, in].
        width: stored elements of a row: `in`, or half of it where PACKED.
        scale_row: from one row's scales to the next row's.
        PACKED: whether an element is two codes.
        GROUP: stored elements that share a scale; only where PACKED.
        BLOCK: a power of two.
    """
    row = tl.program_id(0)
    first = tl.program_id(1) * BLOCK
    column = first + tl.arange(0, BLOCK)
    within = column < width
    stored = tl.load(weight_ptr + row.to(tl.int64) * width + column, mask=within, other=0)
    if PACKED:
        place = row * scale_row + column // GROUP
        scale = tl.load(scale_ptr + place, mask=within, other=0.0).to(tl.float32)
        low, high = nibbles(stored)
        column = 2 * first + tl.arange(0, 2 * BLOCK)
        place = row.to(tl.int64) * (2 * width) + column
        values = tl.interleave(low * scale, high * scale).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + place, values, mask=column < 2 * width)
    else:
        scale = tl.load(scale_ptr + row * scale_row).to(tl.float32)
        place = row.to(tl.int64) * width + column
        values = (signed(stored) * scale).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + place, values, mask=within)


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
