"""Products with a weight of which whole groups of inputs are dropped."""

from typing import Any

import torch
import triton
from torch import Tensor
from torch.nn import functional

from spq.kernels.triton.dequantize import dequantize_groups
from spq.kernels.triton.group_sparse import add_up, partial_sums
from spq.kernels.triton.matrix import launchable
from spq.native import FLOATS
from spq.numerics.group_sparse import GroupSparse, mask_bytes

FEW_ROWS = 16
"""Up to here the codes are read as they are stored; beyond, the weight is written out.

Reasoned from data sheets, not measured. Kept groups are scattered, so the ordinary cores multiply:
an A100 does 10 operations in float32 in the time in which a byte arrives, an H100 20. With 16 rows
of input a weight of which half is kept takes 16 operations for each of its places; writing it out
and reading it again moves 4 bytes for each, and the matrix product is still to come.
"""

WIDTHS = (4, 8, 16, 32, 64)
"""Bytes of a group's codes that the kernels' tiles are made for."""

TASK_BYTES = 1024
"""Codes in a task: some thousand tasks, one warp each, for a layer of a model of 7 billion."""

TILE_BYTES = 512
"""Codes at which a warp looks together: 16 bytes for each of its threads."""


def sparse_product(x: Tensor, weight: GroupSparse, bias: Tensor | None) -> Tensor | None:
    """Inputs times the weight, transposed, plus bias; None where there is no kernel for it.

    Args:
        x: [..., columns], in any layout.
        weight: [rows, columns] in stored form; whether its offsets count the bits of its mask is
            not looked at.
        bias: [rows] or None.

    Returns:
        [..., rows] in the dtype of x, not differentiable.
    """
    if x.dtype not in FLOATS or not x.numel() or not _multiplies(x, weight):
        return None
    if bias is not None and (bias.shape != weight.mask.shape[:1] or bias.dtype not in FLOATS):
        return None
    x = x.contiguous()
    *tensors, _ = weight
    if not launchable(x, *tensors, bias):
        return None
    if x.numel() <= FEW_ROWS * weight.columns:
        return read_codes(x, weight, bias)
    dense = dequantized(weight, x.dtype)
    return functional.linear(x, dense, None if bias is None else bias.to(x.dtype))


def _multiplies(x: Tensor, weight: GroupSparse) -> bool:
    """Whether shapes and dtypes are those of one weight that the kernels take, and of its input."""
    codes, scale, zero, mask, offsets, columns = weight
    return (
        x.ndim > 0
        and x.shape[-1] == columns
        and codes.dtype in (torch.int8, torch.uint8)
        and codes.shape[1] in WIDTHS
        and codes.numel() > 0
        and columns == weight.groups * weight.group_size
        and all(
            t is None or (t.shape == codes.shape[:1] and t.dtype in FLOATS) for t in (scale, zero)
        )
        and mask.dtype == torch.uint8
        and mask.shape == (len(offsets) - 1, mask_bytes(weight.groups))
        and offsets.dtype == torch.int32
    )


def read_codes(x: Tensor, weight: GroupSparse, bias: Tensor | None) -> Tensor:
    """Inputs [..., columns], at most FEW_ROWS, times a weight as it is stored, plus bias."""
    if torch.compiler.is_compiling():
        return _read_groups(x, *weight, bias)
    y = x.new_empty(*x.shape[:-1], len(weight.mask))
    with torch.cuda.device_of(x):
        _launch(x, weight, bias, y)
    return y


def _launch(x: Tensor, weight: GroupSparse, bias: Tensor | None, y: Tensor) -> None:
    (kept, width), (rows, mask_width) = weight.codes.shape, weight.mask.shape
    count = x.numel() // weight.columns
    task = TASK_BYTES // width
    tasks = triton.cdiv(kept, task)
    sums = x.new_empty(tasks + rows, count, dtype=torch.float32)
    partial_sums[(tasks,)](
        x,
        weight.codes,
        weight.scale,
        weight.zero,
        weight.mask,
        weight.offsets,
        sums,
        count,
        kept,
        rows,
        weight.columns,
        mask_width,
        TASK=task,
        HEIGHT=triton.next_power_of_2(count),
        PACKED=weight.bits == 4,
        WIDTH=width,
        GROUPS=TILE_BYTES // width,
        MASK_BYTES=triton.next_power_of_2(mask_width),
        FAN=128,
        num_warps=1,
    )
    block = 128
    add_up[(triton.cdiv(rows, block), count)](
        sums, weight.offsets, bias, y, count, rows, TASK=task, ROWS=block
    )


def dequantized(weight: GroupSparse, dtype: torch.dtype) -> Tensor:
    """The weight [rows, columns], with zeros where groups are dropped."""
    if torch.compiler.is_compiling():
        return _dequantized_groups(*weight, dtype)
    width, (rows, mask_width) = weight.codes.shape[1], weight.mask.shape
    dense = weight.codes.new_empty(rows, weight.columns, dtype=dtype)
    with torch.cuda.device_of(dense):
        dequantize_groups[(rows,)](
            weight.codes,
            weight.scale,
            weight.zero,
            weight.mask,
            weight.offsets,
            dense,
            weight.columns,
            mask_width,
            PACKED=weight.bits == 4,
            WIDTH=width,
            GROUPS=2048 // width,
        )
    return dense


# What torch.compile sees: operations that it calls as they are, and that CUDA graphs record.


@torch.library.custom_op("spq::read_groups", mutates_args=())
def _read_groups(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    mask: Tensor,
    offsets: Tensor,
    columns: int,
    bias: Tensor | None,
) -> Tensor:
    weight = GroupSparse(codes, scale, zero, mask, offsets, columns)
    return read_codes(x.contiguous(), weight, bias)


@_read_groups.register_fake
def _(
    x: Tensor, codes: Tensor, scale: Tensor, zero: Tensor | None, mask: Tensor, *_: Any
) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(mask))


@torch.library.custom_op("spq::dequantized_groups", mutates_args=())
def _dequantized_groups(
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    mask: Tensor,
    offsets: Tensor,
    columns: int,
    dtype: torch.dtype,
) -> Tensor:
    return dequantized(GroupSparse(codes, scale, zero, mask, offsets, columns), dtype)


@_dequantized_groups.register_fake
def _(
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    mask: Tensor,
    offsets: Tensor,
    columns: int,
    dtype: torch.dtype,
) -> Tensor:
    return codes.new_empty(len(mask), columns, dtype=dtype)
