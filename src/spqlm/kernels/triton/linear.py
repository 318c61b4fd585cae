"""Products with a stored weight: which kernel, with which tiles."""

import torch
from torch import Tensor
from torch.nn import functional

from spqlm.formats import StoredWeight
from spqlm.kernels.triton.dequantize import dequantize
from spqlm.kernels.triton.many_rows import many_rows
from spqlm.kernels.triton.matrix import Matrix, cdiv, launchable, matrix_of
from spqlm.kernels.triton.ready import FewRows, prepared
from spqlm.kernels.triton.tiles import Tile, tile_for
from spqlm.native import FLOATS

FEW_ROWS = 64
"""Up to here a scale multiplies the sum of its group, and programs share long rows.

Beyond, it multiplies the weights, in tiles that are the faster the more inputs meet them. Where
between 32 and 128 rows the one overtakes the other has not been measured.
"""


def ready(x: Tensor, weight: StoredWeight, bias: Tensor | None) -> FewRows | None:
    """The product with few rows of input such as x, to be called again and again.

    Args:
        x: [..., in], without gaps.
        weight: [out, in], of which every element is stored.
        bias: [out] or None.

    Returns:
        a function of tensors with the shape, dtype and device of x; None for many rows of input,
        and where there is no kernel.
    """
    matrix = matrix_of(weight, bias)
    if matrix is None or not _multiplies(x, matrix) or x.numel() > FEW_ROWS * matrix.columns:
        return None
    if matrix.scale is None and matrix.weight.dtype != x.dtype:
        return None
    if not launchable(x, matrix.weight, matrix.scale, bias):
        return None
    return prepared(matrix, x.numel() // matrix.columns, x.dtype, x.dtype)


def product(x: Tensor, weight: StoredWeight, bias: Tensor | None) -> Tensor | None:
    """Inputs times the weight, transposed, plus bias; None where there is no kernel for it.

    Args:
        x: [..., in], in any layout.
        weight: [out, in], of which every element is stored.
        bias: [out] or None.

    Returns:
        [..., out] in the dtype of x, not differentiable.
    """
    matrix = matrix_of(weight, bias)
    if matrix is None or not _multiplies(x, matrix):
        return None
    if matrix.scale is None and matrix.weight.dtype != x.dtype:
        return None
    x = x.contiguous()
    if not launchable(x, matrix.weight, matrix.scale, bias):
        return None
    if x.numel() <= FEW_ROWS * matrix.columns:
        return read_codes(x, matrix, x.dtype)
    if matrix.scale is None:
        return None
    if x.dtype != torch.float32:
        return multiply_tiles(x, matrix)
    # Tensor cores round float32, and without them a product of PyTorch's is what is fast.
    dense = dequantized(matrix, x.dtype)
    return functional.linear(x, dense, None if bias is None else bias.to(x.dtype))


def low_rank(
    x: Tensor, right: StoredWeight, left: StoredWeight, bias: Tensor | None
) -> Tensor | None:
    """Few rows times both factors of a low-rank weight; None where there is no kernel for it.

    The vector between the factors stays in float32.

    Args:
        x: [..., in], in any layout.
        right: [rank, in].
        left: [out, rank].
        bias: [out] or None.

    Returns:
        [..., out] in the dtype of x, not differentiable.
    """
    inner, outer = matrix_of(right, None), matrix_of(left, bias)
    if inner is None or outer is None or inner.rows != outer.columns:
        return None
    if not _multiplies(x, inner) or x.numel() > FEW_ROWS * inner.columns:
        return None
    if any(m.scale is None and m.weight.dtype != x.dtype for m in (inner, outer)):
        return None
    x = x.contiguous()
    parts = (inner.weight, inner.scale, outer.weight, outer.scale, bias)
    if not launchable(x, *parts):
        return None
    return read_codes(read_codes(x, inner, torch.float32), outer, x.dtype)


def _multiplies(x: Tensor, matrix: Matrix) -> bool:
    fits = x.ndim > 0 and x.shape[-1] == matrix.columns
    return fits and x.dtype in FLOATS and bool(x.numel())


def read_codes(x: Tensor, matrix: Matrix, dtype: torch.dtype) -> Tensor:
    """Inputs [..., in], at most FEW_ROWS, times a weight as it is stored, [..., out] in `dtype`."""
    return prepared(matrix, x.numel() // matrix.columns, x.dtype, dtype)(x)


def multiply_tiles(x: Tensor, matrix: Matrix, tile: Tile | None = None) -> Tensor:
    """Inputs [..., in] in half precision, many of them, times codes and scales, [..., out].

    Args:
        x: inputs, without gaps.
        matrix: of codes.
        tile: instead of the one that is chosen for these shapes.
    """
    count = x.numel() // matrix.columns
    y = x.new_empty(*x.shape[:-1], matrix.rows)
    tile = tile or tile_for(matrix.rows, count, x.device)
    with torch.cuda.device_of(x):
        many_rows[(cdiv(matrix.rows, tile.rows), cdiv(count, tile.height))](
            *(x, matrix.weight, matrix.scale, matrix.bias, y),
            *(count, matrix.rows, matrix.width, matrix.scale_row),
            BITS=matrix.bits,
            NONLINEAR=matrix.nonlinear,
            GROUP=matrix.group,
            ROWS=tile.rows,
            HEIGHT=tile.height,
            DEPTH=min(tile.depth, matrix.group or tile.depth),
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
    return y


def dequantized(matrix: Matrix, dtype: torch.dtype, index: Tensor | None = None) -> Tensor:
    """The weight [out, in] of codes and scales, or the rows of it in `index`, int64 [taken]."""
    rows = matrix.rows if index is None else len(index)
    weight = matrix.weight.new_empty(rows, matrix.columns, dtype=dtype)
    block = 1024
    with torch.cuda.device_of(weight):
        dequantize[(rows, cdiv(matrix.width, block))](
            matrix.weight,
            matrix.scale,
            index,
            weight,
            *(matrix.rows, matrix.width, matrix.scale_row),
            BITS=matrix.bits,
            NONLINEAR=matrix.nonlinear,
            GROUP=matrix.unit_group,
            BLOCK=block,
        )
    return weight


def restored(
    weight: StoredWeight, dtype: torch.dtype | None = None, index: Tensor | None = None
) -> Tensor | None:
    """The weight, or rows of it, in a float dtype; None where there is no kernel for it.

    Args:
        weight: [out, in] of codes.
        dtype: of the result; by default that of the scales.
        index: int64 [taken], rows; one outside [0, out) gives a row of NaN. None for all.

    Returns:
        [out, in] or [taken, in], not differentiable.
    """
    matrix = matrix_of(weight, None)
    if matrix is None or matrix.scale is None or (index is not None and not len(index)):
        return None
    if not launchable(matrix.weight, matrix.scale, index):
        return None
    return dequantized(matrix, dtype or matrix.scale.dtype, index)
