"""Stored weights as the compiled kernels see them."""

import ctypes
from enum import IntEnum

import torch
from torch import Tensor

from spqlm.formats import Layout, StoredWeight
from spqlm.native import DTYPES, FLOATS, Matrix, addressable
from spqlm.numerics.nonlinear import LEVELS
from spqlm.numerics.packing import PLANES, multiple

EVEN = {f"int{bits}": bits for bits in PLANES}
NONLINEAR = {f"nl{bits}": bits for bits in LEVELS}
GROUPED = {**EVEN, **NONLINEAR}
"""Kinds of layout of codes in groups, and their bits; of the first, levels are evenly spaced."""

CODINGS = {**EVEN, **{kind: 8 + bits for kind, bits in NONLINEAR.items()}}
"""The same kinds as `Matrix` in matrix.h calls them."""

KINDS = {"int8": 3, **dict.fromkeys(GROUPED, 4), "sparse_int8": 5, "sparse_int4": 6}
"""Kinds of layout that there are kernels for, beside `dense`; mirrors `Format` in matrix.h."""

_CODES = {
    "int8": torch.int8,
    **dict.fromkeys(GROUPED, torch.uint8),
    "sparse_int8": torch.int8,
    "sparse_int4": torch.uint8,
}
GROUP_SIZES = (8, 16, 32, 64)
"""Of groups of which only some are stored."""

WIDEST = 2**26
"""Inputs of a row that a kernel for stored groups can address."""


class Schedule(IntEnum):
    """How a product with stored groups is split over threads; mirrors `Schedule` in sparse.h."""

    EVEN_GROUPS = 0
    EVEN_ROWS = 1


def consistent(layout: Layout, bias: Tensor | None) -> bool:
    """Whether shapes and dtypes are those of one weight that kernels know, on whatever device.

    That a mask and its offsets count the same groups is checked where a weight is made or loaded
    (`StoredWeight.check`), and not again here.
    """
    kind, codes, scale, columns, groups, *_ = layout
    if codes.ndim != 2:
        return False
    stored, width = codes.shape
    rows = stored if layout.offsets is None else len(layout.offsets) - 1
    if bias is not None and (bias.shape != (rows,) or bias.dtype not in FLOATS):
        return False
    if kind == "dense":
        return scale is None and codes.dtype in FLOATS and width == columns
    if scale is None or scale.dtype not in FLOATS or codes.dtype != _CODES.get(kind):
        return False
    if kind == "int8":
        return width == columns and scale.shape == ((rows if groups else 1),)
    if (bits := GROUPED.get(kind)) is not None:
        whole = groups > 0 and columns % groups == 0 and columns % multiple(bits) == 0
        return whole and 8 * width == columns * bits and scale.shape == (rows, groups)
    return _stored_groups(layout, rows)


def _stored_groups(layout: Layout, rows: int) -> bool:
    codes, scale, zero, mask, offsets = (
        *(layout.codes, layout.scale, layout.zero),
        *(layout.mask, layout.offsets),
    )
    if scale is None or mask is None or offsets is None:
        return False
    kept, width = codes.shape
    codes_a_byte = 2 if layout.kind == "sparse_int4" else 1
    return (
        width * codes_a_byte == layout.group_size
        and layout.columns == layout.groups * layout.group_size
        and scale.shape == (kept,)
        and (zero is None or (zero.shape == (kept,) and zero.dtype == scale.dtype))
        and offsets.dtype == torch.int32
        and offsets.ndim == 1
        and mask.dtype == torch.uint8
        and mask.shape == (rows, -(-layout.groups // 8))
    )


def matrix_of(weight: StoredWeight, bias: Tensor | None) -> Matrix | None:
    """How the kernels see a weight, or None where there are none for it.

    Args:
        weight: [out, in].
        bias: [out] or None.

    Returns:
        what holds on to its tensors, and not to the bias.
    """
    layout = weight.layout()
    if layout is None:
        return None
    kind, codes, scale, columns, groups, group_size, zero, mask, offsets = layout
    if not addressable(codes, scale, zero, mask, offsets, bias) or not consistent(layout, bias):
        return None
    if mask is not None and (group_size not in GROUP_SIZES or columns >= WIDEST):
        return None
    made = Matrix(
        codes.data_ptr(),
        None if scale is None else scale.data_ptr(),
        None if bias is None else bias.data_ptr(),
        len(codes) if mask is None else len(mask),
        columns,
        groups,
        DTYPES[codes.dtype] if kind == "dense" else KINDS[kind],
        0 if scale is None else DTYPES[scale.dtype],
        0 if bias is None else DTYPES[bias.dtype],
        CODINGS.get(kind, 0),
        group_size,
        None if zero is None else zero.data_ptr(),
        None if mask is None else mask.data_ptr(),
        None if offsets is None else offsets.data_ptr(),
    )
    # Some are made for the kernels, and are nowhere else.
    made.kept = layout
    return made


def sparse_linear(found: ctypes.CDLL, x: Tensor, matrix: Matrix, schedule: Schedule) -> Tensor:
    """As `native.linear` of one sparse matrix, with a choice of how the work is split.

    `native.linear` itself splits the stored groups evenly.
    """
    y = x.new_empty(*x.shape[:-1], matrix.rows)
    found.spq_sparse_linear(
        matrix,
        x.data_ptr(),
        DTYPES[x.dtype],
        y.numel() // matrix.rows,
        y.data_ptr(),
        torch.get_num_threads(),
        schedule,
    )
    return y
