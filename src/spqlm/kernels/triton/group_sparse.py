"""Weights of which whole groups of inputs are dropped (GQSA, arXiv 2412.17560, section 3.3).

On a processor such work is cut into tasks of equal numbers of kept groups, for rows keep different
numbers of them. A GPU hands the next program to whichever core is free, so a program is a row here,
which needs no search for the row that a task begins in and no second launch that adds up what
several tasks found. docs/kernel-measurements.md has both.

A bit says whether a group is kept, and threads that each want another kept group would have to
count bits; so the kernel reads the numbers of the kept groups, which are made once from the bits.
"""

import triton
import triton.language as tl

from spqlm.kernels.triton.words import times_bytes, times_nibbles


@triton.jit
def kept_groups_times_inputs(
    pairs_ptr: tl.tensor,
    words_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    zero_ptr: tl.tensor,
    group_ptr: tl.tensor,
    offsets_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    y_ptr: tl.tensor,
    count: tl.tensor,
    rows: tl.tensor,
    kept: tl.tensor,
    width: tl.tensor,
    PACKED: tl.constexpr,
    DTYPE: tl.constexpr,
    WORDS: tl.constexpr,
    GROUPS: tl.constexpr,
) -> None:
    """Each program computes one output of one row of input, GROUPS kept groups at a time.

    Args:
        pairs_ptr: [count, width], inputs in twos, each two an integer of twice their size.
        words_ptr: int32 [kept, WORDS], the codes.
        scale_ptr: [kept].
        zero_ptr: [kept], what is added to scale * code, or None.
        group_ptr: int16 [kept], the number in its row of each kept group.
        offsets_ptr: int32 [rows + 1], kept groups before each row.
        bias_ptr: [rows] or None.
        y_ptr: [count, rows].
        count: rows of input.
        rows: outputs.
        kept: groups that are kept, at least 1.
        width: twos in a row of input.
        PACKED: whether a word holds 8 codes of 4 bits, else 4 of 8.
        DTYPE: of an input.
        WORDS: of a group, a power of two.
        GROUPS: a power of two.
    """
    row = tl.program_id(0) // count
    item = tl.program_id(0) % count
    PAIRS: tl.constexpr = 4 * WORDS if PACKED else 2 * WORDS
    word = tl.arange(0, WORDS)
    pair = tl.arange(0, PAIRS)
    inputs_ptr = pairs_ptr + item * width
    end = tl.load(offsets_ptr + row + 1)
    total = tl.zeros([GROUPS], tl.float32)
    for first in range(tl.load(offsets_ptr + row), end, GROUPS):
        place = first + tl.arange(0, GROUPS)
        mine = place < end
        # Loads without a mask cost less; what lies beyond the end is left out of the sum.
        place = tl.minimum(place, kept - 1).to(tl.int64)
        group = tl.load(group_ptr + place).to(tl.int32)
        words = tl.load(words_ptr + place[:, None] * WORDS + word[None, :])
        pairs = tl.load(inputs_ptr + group[:, None] * PAIRS + pair[None, :])
        if PACKED:
            sums, inputs = times_nibbles(words, words, pairs, DTYPE, 4)
        else:
            sums, inputs = times_bytes(words, pairs, DTYPE)
        found = tl.sum(sums, axis=1) * tl.load(scale_ptr + place).to(tl.float32)
        if zero_ptr is not None:
            found += tl.sum(inputs, axis=1) * tl.load(zero_ptr + place).to(tl.float32)
        total += tl.where(mine, found, 0.0)
    y = tl.sum(total, axis=0)
    if bias_ptr is not None:
        y += tl.load(bias_ptr + row).to(tl.float32)
    tl.store(y_ptr + item.to(tl.int64) * rows + row, y.to(y_ptr.dtype.element_ty))
