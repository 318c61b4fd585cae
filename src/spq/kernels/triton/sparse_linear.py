"""Products with a weight of which whole groups of inputs are dropped."""

import torch
import triton
from torch import Tensor
from torch.nn import functional

from spq.kernels.triton.dequantize import dequantize_groups
from spq.kernels.triton.group_sparse import add_up, partial_sums
from spq.kernels.triton.matrix import launchable
from spq.native import FLOATS

FEW_ROWS = 16
"""Up to here the codes are read as they are stored; beyond, the weight is written out.

Reasoned, not measured. Kept groups are scattered, so the ordinary cores multiply: an A100 does 10
operations in float32 in the time in which a byte arrives, an H100 20. With 16 rows of input a weight
of 4 bits of which half is kept takes 16 operations for each of its places; writing it out and
reading it again moves 4 bytes for each.
"""

TASK_BYTES = 1024
"""Codes in a task: some thousand tasks, one warp each, for a layer of a model of 7 billion."""

TILE_BYTES = 512
"""Codes at which a warp looks together: 16 bytes for each of its threads."""


def sparse_product(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    mask: Tensor,
    offsets: Tensor,
    bias: Tensor | None,
) -> Tensor | None:
    """Inputs times the weight, transposed, plus bias; None where there is no kernel for it.

    That `offsets` counts the bits of `mask` is not checked here.

    Args:
        x: [..., in], in any layout.
        codes: of the kept groups, row by row: int8 [kept, group size], or packed 4-bit codes, uint8
            [kept, group size / 2].
        scale: [kept].
        zero: [kept], added to scale * code, or None.
        mask: uint8 [out, bytes]: bit g % 8 of byte g // 8 says whether group g is kept.
        offsets: int32 [out + 1], kept groups before each row.
        bias: [out] or None.

    Returns:
        [..., out] in the dtype of x, not differentiable.
    """
    if x.dtype not in FLOATS or not x.numel() or not _belong(x, codes, scale, zero, mask, offsets):
        return None
    if bias is not None and (bias.shape != mask.shape[:1] or bias.dtype not in FLOATS):
        return None
    x = x.contiguous()
    if not launchable(x, codes, scale, zero, mask, offsets, bias):
        return None
    with torch.cuda.device_of(x):
        if x.numel() <= FEW_ROWS * x.shape[-1]:
            return _few_rows(x, codes, scale, zero, mask, offsets, bias)
        weight = _dequantized(x.shape[-1], x.dtype, codes, scale, zero, mask, offsets)
    return functional.linear(x, weight, None if bias is None else bias.to(x.dtype))


def _belong(
    x: Tensor, codes: Tensor, scale: Tensor, zero: Tensor | None, mask: Tensor, offsets: Tensor
) -> bool:
    """Whether shapes and dtypes are those of one weight that the kernels take."""
    if codes.ndim != 2 or codes.dtype not in (torch.int8, torch.uint8) or mask.ndim != 2:
        return False
    kept, width = codes.shape
    size = _size(codes)
    return (
        kept > 0
        and width in (4, 8, 16, 32, 64)
        and x.ndim > 0
        and x.shape[-1] % size == 0
        and all(t is None or (t.shape == (kept,) and t.dtype in FLOATS) for t in (scale, zero))
        and mask.dtype == torch.uint8
        and mask.shape[1] == -(-x.shape[-1] // (8 * size))
        and offsets.dtype == torch.int32
        and offsets.shape == (len(mask) + 1,)
    )


def _size(codes: Tensor) -> int:
    return codes.shape[1] * (2 if codes.dtype == torch.uint8 else 1)


def _few_rows(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    mask: Tensor,
    offsets: Tensor,
    bias: Tensor | None,
) -> Tensor:
    (kept, width), (rows, mask_bytes) = codes.shape, mask.shape
    columns = x.shape[-1]
    count = x.numel() // columns
    task = TASK_BYTES // width
    tasks = triton.cdiv(kept, task)
    sums = x.new_empty(tasks + rows, count, dtype=torch.float32)
    partial_sums[(tasks,)](
        x,
        codes,
        scale,
        zero,
        mask,
        offsets,
        sums,
        count,
        kept,
        rows,
        columns,
        mask_bytes,
        TASK=task,
        HEIGHT=triton.next_power_of_2(count),
        PACKED=codes.dtype == torch.uint8,
        WIDTH=width,
        GROUPS=TILE_BYTES // width,
        MASK_BYTES=triton.next_power_of_2(mask_bytes),
        FAN=128,
        num_warps=1,
    )
    y = x.new_empty(*x.shape[:-1], rows)
    block = 128
    add_up[(triton.cdiv(rows, block), count)](
        sums, offsets, bias, y, count, rows, TASK=task, ROWS=block
    )
    return y


def _dequantized(
    columns: int,
    dtype: torch.dtype,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    mask: Tensor,
    offsets: Tensor,
) -> Tensor:
    width, (rows, mask_bytes) = codes.shape[1], mask.shape
    weight = codes.new_empty(rows, columns, dtype=dtype)
    dequantize_groups[(rows,)](
        codes,
        scale,
        zero,
        mask,
        offsets,
        weight,
        columns,
        mask_bytes,
        PACKED=codes.dtype == torch.uint8,
        WIDTH=width,
        GROUPS=2048 // width,
    )
    return weight
