"""Weights of which whole groups of inputs are dropped (GQSA, arXiv 2412.17560, section 3.3).

Rows keep different numbers of groups, so work is cut by kept groups and not by rows: every task has
as many of them, and starts and ends where that happens to be, inside a row too. A task walks over
the bits that say which groups are kept; the codes of the kept ones lie one after the other, so
their places are a running count of the bits.

Each task leaves one sum for every row that it touches, in slot task + row. From one such pair to
the next in the order of the codes, the task or the row or both go up, so slots never meet, and
there are fewer than tasks + rows. `add_up` then adds each row's sums in order: results do not
depend on which program was faster, as they would with atomic additions.
"""

import triton
import triton.language as tl

from spq.kernels.triton.unpacking import kept_bits, nibbles


@triton.jit
def _row_of(
    offsets_ptr: tl.tensor, rows: tl.tensor, kept: tl.tensor, FAN: tl.constexpr
) -> tl.tensor:
    """The row that the kept group of this number lies in: the last whose offset is not beyond it.

    A search FAN ways at a time, as each step waits for memory once.
    """
    low = 0
    span = rows
    while span > 1:
        step = (span + FAN - 1) // FAN
        probe = low + step * tl.arange(0, FAN)
        within = probe < tl.minimum(low + span, rows)
        offset = tl.load(offsets_ptr + probe, mask=within, other=0)
        passed = tl.sum((within & (offset <= kept)).to(tl.int32), axis=0)
        low += (passed - 1) * step
        span = step
    return low


@triton.jit
def partial_sums(
    x_ptr: tl.tensor,
    codes_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    zero_ptr: tl.tensor,
    mask_ptr: tl.tensor,
    offsets_ptr: tl.tensor,
    sums_ptr: tl.tensor,
    count: tl.tensor,
    kept: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    mask_bytes: tl.tensor,
    TASK: tl.constexpr,
    HEIGHT: tl.constexpr,
    PACKED: tl.constexpr,
    WIDTH: tl.constexpr,
    GROUPS: tl.constexpr,
    MASK_BYTES: tl.constexpr,
    FAN: tl.constexpr,
) -> None:
    """Each program is one task: TASK kept groups, times all rows of input.

    Args:
        x_ptr: [count, columns].
        codes_ptr: [kept, WIDTH]: int8 codes, or two 4-bit codes to a byte.
        scale_ptr: [kept].
        zero_ptr: [kept], what is added to scale * code, or None.
        mask_ptr: [rows, mask_bytes], a bit for each group, lowest first.
        offsets_ptr: int32 [rows + 1], kept groups before each row.
        sums_ptr: float32 [tasks + rows, count], written at task + row.
        count: rows of input.
        kept: groups that are kept.
        rows: outputs.
        columns: inputs.
        mask_bytes: bytes of a row's mask.
        TASK: see above.
        HEIGHT: a power of two, at least `count`.
        PACKED: whether a stored element is two codes.
        WIDTH: stored elements of a group, a power of two.
        GROUPS: of a row, looked at together, a power of two and a multiple of 8.
        MASK_BYTES: a power of two, at least `mask_bytes`.
        FAN: of the search for the first row, a power of two.
    """
    task = tl.program_id(0)
    start = task * TASK
    stop = tl.minimum(start + TASK, kept)
    row = _row_of(offsets_ptr, rows, start, FAN)

    # The byte of the row's mask that holds the first group of the task.
    before = tl.load(offsets_ptr + row)
    every = tl.arange(0, 8 * MASK_BYTES)
    bits = tl.reshape(kept_bits(mask_ptr, row, every, mask_bytes), [MASK_BYTES, 8])
    counts = tl.sum(bits, axis=1)
    passed = before + tl.cumsum(counts, axis=0) <= start
    byte = tl.sum(passed.to(tl.int32), axis=0)
    before += tl.sum(tl.where(passed, counts, 0), axis=0)

    item = tl.arange(0, HEIGHT)
    inside = tl.arange(0, WIDTH)
    SIZE: tl.constexpr = 2 * WIDTH if PACKED else WIDTH
    while (before < stop) & (row < rows):
        sums = tl.zeros([HEIGHT], tl.float32)
        while (byte < mask_bytes) & (before < stop):
            group = 8 * byte + tl.arange(0, GROUPS)
            bit = kept_bits(mask_ptr, row, group, mask_bytes)
            place = before + tl.cumsum(bit, axis=0) - bit
            mine = (bit == 1) & (place >= start) & (place < stop)
            place = place.to(tl.int64)
            stored = tl.load(
                codes_ptr + place[:, None] * WIDTH + inside[None, :], mask=mine[:, None], other=0
            )
            scale = tl.load(scale_ptr + place, mask=mine, other=0.0).to(tl.float32)
            column = group[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
            for index in range(count):
                x = tl.load(x_ptr + index * columns + column, mask=mine[:, None], other=0.0).to(
                    tl.float32
                )
                if PACKED:
                    even, odd = tl.split(tl.reshape(x, [GROUPS, WIDTH, 2]))
                    low, high = nibbles(stored)
                    product = tl.sum(low * even + high * odd, axis=1) * scale
                else:
                    product = tl.sum(stored.to(tl.float32) * x, axis=1) * scale
                if zero_ptr is not None:
                    zero = tl.load(zero_ptr + place, mask=mine, other=0.0).to(tl.float32)
                    product += tl.sum(x, axis=1) * zero
                sums += tl.where(item == index, tl.sum(product, axis=0), 0.0)
            before += tl.sum(bit, axis=0)
            byte += GROUPS // 8
        slot = (task + row).to(tl.int64) * count
        tl.store(sums_ptr + slot + item, sums, mask=item < count)
        row += 1
        byte = 0


@triton.jit
def add_up(
    sums_ptr: tl.tensor,
    offsets_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    y_ptr: tl.tensor,
    count: tl.tensor,
    rows: tl.tensor,
    TASK: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """Program (i, j) adds what the tasks found for ROWS outputs of input j, in the tasks' order.

    Args:
        sums_ptr: float32 [tasks + rows, count], from `partial_sums`.
        offsets_ptr: int32 [rows + 1].
        bias_ptr: [rows] or None.
        y_ptr: [count, rows].
        count: rows of input.
        rows: outputs.
        TASK: kept groups of a task.
        ROWS: a power of two.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    item = tl.program_id(1)
    there = row < rows
    begin = tl.load(offsets_ptr + row, mask=there, other=0)
    end = tl.load(offsets_ptr + row + 1, mask=there, other=0)
    first = begin // TASK
    # A row without groups has no sums.
    tasks = tl.where(end > begin, (end - 1) // TASK - first + 1, 0)
    total = tl.zeros([ROWS], tl.float32)
    for index in range(0, tl.max(tasks, axis=0)):
        slot = (first + index + row).to(tl.int64) * count + item
        total += tl.load(sums_ptr + slot, mask=there & (index < tasks), other=0.0)
    if bias_ptr is not None:
        total += tl.load(bias_ptr + row, mask=there, other=0.0).to(tl.float32)
    place = item.to(tl.int64) * rows + row
    tl.store(y_ptr + place, total.to(y_ptr.dtype.element_ty), mask=there)
