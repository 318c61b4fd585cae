"""Group-sparse weights as the compiled kernels see them."""

import ctypes
from enum import IntEnum

import torch
from torch import Tensor

from spqlm.native import FLOATS, FORMATS, Matrix, addressable
from spqlm.numerics.group_sparse import GroupSparse, mask_bytes

GROUP_SIZES = (8, 16, 32, 64)
WIDEST = 2**26
"""Inputs of a row that a kernel can address."""

_FORMATS = {torch.int8: 5, torch.uint8: 6}


class Schedule(IntEnum):
    """How a product is split over threads; mirrors `Schedule` in sparse.h."""

    EVEN_GROUPS = 0
    EVEN_ROWS = 1


def usable(weight: GroupSparse, bias: Tensor | None) -> bool:
    """Whether these may become a `matrix_of`: addressable, and of shapes that belong together.

    That the mask and the offsets count the same groups is checked where a weight is made or loaded
    (`spqlm.numerics.group_sparse.check`), and not again here.
    """
    codes, scale, zero, mask, offsets, columns = weight
    if not addressable(codes, scale, zero, mask, offsets, bias):
        return False
    if codes.ndim != 2 or codes.dtype not in _FORMATS or weight.group_size not in GROUP_SIZES:
        return False
    kept, rows = len(codes), len(offsets) - 1
    return (
        columns % weight.group_size == 0
        and columns < WIDEST
        and scale.shape == (kept,)
        and scale.dtype in FLOATS
        and (zero is None or (zero.shape == (kept,) and zero.dtype == scale.dtype))
        and offsets.dtype == torch.int32
        and offsets.ndim == 1
        and mask.dtype == torch.uint8
        and mask.shape == (rows, mask_bytes(weight.groups))
        and (bias is None or (bias.shape == (rows,) and bias.dtype in FLOATS))
    )


def matrix_of(weight: GroupSparse, bias: Tensor | None) -> Matrix:
    """How the kernels see a weight; the tensors must be `usable` and outlive the result.

    Args:
        weight: [out, in] in stored form.
        bias: [out] or None.
    """
    codes, scale, zero, mask, offsets, columns = weight
    return Matrix(
        codes.data_ptr(),
        scale.data_ptr(),
        None if bias is None else bias.data_ptr(),
        len(mask),
        columns,
        weight.groups,
        _FORMATS[codes.dtype],
        FORMATS[scale.dtype],
        0 if bias is None else FORMATS[bias.dtype],
        weight.group_size,
        None if zero is None else zero.data_ptr(),
        mask.data_ptr(),
        offsets.data_ptr(),
    )


def linear(found: ctypes.CDLL, x: Tensor, matrix: Matrix, schedule: Schedule) -> Tensor:
    """As `spqlm.native.linear` of one sparse matrix, with a choice of how the work is split.

    `spqlm.native.linear` itself splits the kept groups evenly.
    """
    y = x.new_empty(*x.shape[:-1], matrix.rows)
    found.spq_sparse_linear(
        matrix,
        x.data_ptr(),
        FORMATS[x.dtype],
        y.numel() // matrix.rows,
        y.data_ptr(),
        torch.get_num_threads(),
        schedule,
    )
    return y
