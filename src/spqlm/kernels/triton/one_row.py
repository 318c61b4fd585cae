"""One row of input times a weight as it is stored: decoding one token.

Nothing is reused but the input, so what counts is to read the codes once, in wide accesses, with
few instructions for each. That is arithmetic for the ordinary cores, in float32.
"""

import triton
import triton.language as tl

from spqlm.kernels.triton.unpacking import planes, row_units
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
    BITS: tl.constexpr,
    DTYPE: tl.constexpr,
    GROUP: tl.constexpr,
    CHUNKS: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """Each program computes ROWS outputs, CHUNKS times four words of codes of each at a time.

    Args:
        pairs_ptr: [in / 2], inputs in twos, each two an integer of twice their size.
        words_ptr: int32, the codes of the weight: rows of words, in planes where BITS is below 8.
        scale_ptr: [rows, groups], or of row i at i * scale_row where GROUP is None.
        bias_ptr: [rows] or None.
        y_ptr: [rows].
        rows: outputs.
        width: words of a row; where BITS is below 8, words of 8 nibbles.
        scale_row: from one row's scales to the next row's.
        BITS: of a code, 2 to 8.
        DTYPE: of an input.
        GROUP: words that share a scale, a multiple of 4; None where all of a row do.
        CHUNKS: a power of two.
        ROWS: a power of two.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    start = words_ptr + row.to(tl.int64) * (width if BITS == 8 else row_units(width, BITS))
    there = row < rows
    PAIRS: tl.constexpr = 8 if BITS == 8 else 16
    total = tl.zeros([ROWS, CHUNKS], tl.float32)
    for first in range(0, width, 4 * CHUNKS):
        chunk = first // 4 + tl.arange(0, CHUNKS)
        column = 4 * chunk[:, None] + tl.arange(0, 4)[None, :]
        inside = there[:, None, None] & (column < width)[None, :, :]
        pair = PAIRS * chunk[:, None] + tl.arange(0, PAIRS)[None, :]
        pairs = tl.load(pairs_ptr + pair, mask=pair < PAIRS // 4 * width, other=0)
        if BITS == 8:
            words = tl.load(start[:, None, None] + column[None, :, :], mask=inside, other=0)
            sums, _ = times_bytes(words, pairs, DTYPE)
        else:
            words, higher = planes(start[:, None, None], column[None, :, :], width, inside, BITS, 4)
            sums, _ = times_nibbles(words, higher, pairs, DTYPE, BITS)
        found = tl.sum(sums, axis=2)
        if GROUP is not None:
            place = row[:, None] * scale_row + (4 * chunk // GROUP)[None, :]
            within = there[:, None] & (4 * chunk < width)[None, :]
            found *= tl.load(scale_ptr + place, mask=within, other=0.0).to(tl.float32)
        total += found
    y = tl.sum(total, axis=1)
    if GROUP is None:
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
