"""Products with a weight of which whole groups of inputs are dropped."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.weak import WeakTensorKeyDictionary

from spqlm.kernels.triton.dequantize import dequantize_groups
from spqlm.kernels.triton.group_sparse import kept_groups_times_inputs
from spqlm.kernels.triton.matrix import DTYPES, in_pairs, in_words, launchable
from spqlm.native import FLOATS
from spqlm.numerics.group_sparse import GroupSparse, mask_bytes, unpack_mask

FEW_ROWS = 6
"""Up to here the codes are read as they are stored; beyond, the weight is written out."""

WIDTHS = (4, 8, 16, 32, 64)
"""Bytes of a group's codes that the kernels' tiles are made for."""

MOST_GROUPS = 2**15
"""In a row: their numbers are kept in 16 bits."""

_numbers = WeakTensorKeyDictionary()


def group_numbers(weight: GroupSparse) -> Tensor:
    """The number in its row of each kept group, int16 [kept].

    Made when a mask is seen for the first time, and kept as long as the mask is: 2 bytes for a
    group, on the GPU only.
    """
    mask = weight.mask
    version = None if mask.is_inference() else mask._version
    known = _numbers.get(mask)
    if known is None or known[0] != version:
        numbers = unpack_mask(mask.detach(), weight.groups).nonzero()[:, 1].to(torch.int16)
        _numbers[mask] = known = version, numbers
    return known[1]


def sparse_product(x: Tensor, weight: GroupSparse, bias: Tensor | None) -> Tensor | None:
    """Inputs times the weight, transposed, plus bias; None where there is no kernel for it.

    Args:
        x: [..., columns], in any layout.
        weight: [rows, columns] in stored form; whether its offsets count the bits of each row's
            mask is not looked at.
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
    # For a prompt too: graphs of the tokens after it cannot make the numbers.
    if not torch.compiler.is_compiling() and len(group_numbers(weight)) != len(weight.codes):
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
        and weight.groups < MOST_GROUPS
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
    words, rows, count = in_words(weight.codes), weight.mask.shape[0], x.numel() // weight.columns
    kept_groups_times_inputs[(rows * count,)](
        in_pairs(x),
        *(words, weight.scale, weight.zero, group_numbers(weight), weight.offsets, bias, y),
        *(count, rows, len(words), weight.columns // 2),
        PACKED=weight.bits == 4,
        DTYPE=DTYPES[x.dtype],
        WORDS=words.shape[1],
        GROUPS=32,
        num_warps=1,
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


@torch.library.custom_op("spqlm::read_groups", mutates_args=())
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


@torch.library.custom_op("spqlm::dequantized_groups", mutates_args=())
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
