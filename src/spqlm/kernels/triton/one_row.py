"""One row of input times a weight as it is stored: decoding one token.

Nothing is reused but the input, so what counts is to read the codes once, in wide accesses, with
few instructions for each. That is arithmetic for the ordinary cores, in float32.
"""

import triton
import triton.language as tl

from spqlm.kernels.triton.words import times_bytes, times_nibbles


@triton.jit
def one_row_of_words(
    pairs_ptr: tl.tensor,
    words_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    y_ptr: tl.tensor,
    rows: tl.tensor,
    width: tl.tensor,
    scale_row: tl.tensor,
    PACKED: tl.constexpr,
    DTYPE: tl.constexpr,
    GROUP: tl.constexpr,
    CHUNKS: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """Each program computes ROWS outputs, CHUNKS times 16 bytes of codes of each at a time.

    Args:
        pairs_ptr: [in / 2], inputs in twos, each two an integer of twice their size.
        words_ptr: int32 [rows, width], the codes of the weight.
        scale_ptr: [rows, groups] where PACKED, else of row i at i * scale_row.
        bias_ptr: [rows] or None.
        y_ptr: [rows].
        rows: outputs.
        width: words of a row.
        scale_row: from one row's scales to the next row's.
        PACKED: whether a word holds 8 codes of 4 bits, else 4 of 8.
        DTYPE: of an input.
        GROUP: words that share a scale, a multiple of 4; only where PACKED.
        CHUNKS: a power of two.
        ROWS: a power of two.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    start = words_ptr + row.to(tl.int64) * width
    there = row < rows
    PAIRS: tl.constexpr = 16 if PACKED else 8
    total = tl.zeros([ROWS, CHUNKS], tl.float32)
    for first in range(0, width, 4 * CHUNKS):
        chunk = first // 4 + tl.arange(0, CHUNKS)
        column = 4 * chunk[:, None] + tl.arange(0, 4)[None, :]
        words = tl.load(
            start[:, None, None] + column[None, :, :],
            mask=there[:, None, None] & (column < width)[None, :, :],
            other=0,
        )
        pair = PAIRS * chunk[:, None] + tl.arange(0, PAIRS)[None, :]
        pairs = tl.load(pairs_ptr + pair, mask=pair < PAIRS // 4 * width, other=0)
        if PACKED:
            sums, _ = times_nibbles(words, pairs, DTYPE)
            place = row[:, None] * scale_row + (4 * chunk // GROUP)[None, :]
            inside = there[:, None] & (4 * chunk < width)[None, :]
            scale = tl.load(scale_ptr + place, mask=inside, other=0.0).to(tl.float32)
            total += tl.sum(sums, axis=2) * scale
        else:
            sums, _ = times_bytes(words, pairs, DTYPE)
            total += tl.sum(sums, axis=2)
    y = tl.sum(total, axis=1)
    if not PACKED:
        y *= tl.load(scale_ptr + row * scale_row, mask=there, other=0.0).to(tl.float32)
    if bias_ptr is not None:
        y += tl.load(bias_ptr + row, mask=there, other=0.0).to(tl.float32)
    tl.store(y_ptr + row, y.to(y_ptr.dtype.element_ty), mask=there)


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
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """The same element by element: floats, and int8 codes whose rows are not whole words.

    Args:
        x_ptr: [width].
        weight_ptr: [rows, width]: floats or int8 codes.
        scale_ptr: of row i at i * scale_row; or None.
        bias_ptr: [rows] or None.
        y_ptr: [rows].
        rows: outputs.
        width: inputs.
        scale_row: see scale_ptr.
        BLOCK: elements of a row at a time, a power of two.
        ROWS: a power of two.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    start = weight_ptr + row.to(tl.int64) * width
    there = row < rows
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    for first in range(0, width, BLOCK):
        column = first + tl.arange(0, BLOCK)
        within = column < width
        stored = tl.load(
            start[:, None] + column[None, :], mask=there[:, None] & within[None, :], other=0
        )
        x = tl.load(x_ptr + column, mask=within, other=0.0).to(tl.float32)
        total += stored.to(tl.float32) * x[None, :]
    y = tl.sum(total, axis=1)
    if scale_ptr is not None:
        y *= tl.load(scale_ptr + row * scale_row, mask=there, other=0.0).to(tl.float32)
    if bias_ptr is not None:
        y += tl.load(bias_ptr + row, mask=there, other=0.0).to(tl.float32)
    tl.store(y_ptr + row, y.to(y_ptr.dtype.element_ty), mask=there)
