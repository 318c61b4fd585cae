"""Which arithmetic a compressed layer uses for the call at hand.

Where there are kernels that can take the tensors (native ones on a CPU, in Triton on a GPU): few
rows of input go to a kernel that reads the codes as they are stored, which costs their bytes; for
many rows the weight is turned into the dtype of the activations (or float32, where the processor
multiplies that faster), on a CPU a block at a time, in a cache for a native product or for
PyTorch's, which costs arithmetic. Where gradients are needed, the autograd functions beside this
file call the same. Everything else (another device, tracing, float64) goes to the PyTorch
reference. docs/kernels.md has the measurements.
"""

import logging
import threading
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional

from spqlm import native
from spqlm.kernels.widening import arithmetic
from spqlm.native import sparse
from spqlm.numerics.group_sparse import GroupSparse

logger = logging.getLogger(__name__)

FEW_ROWS = 16
"""Up to here the kernels for few rows are the faster ones."""

FEW_ROWS_SPARSE = 32
"""The same for weights of which only some groups are stored: they leave work out, too."""

MANY_ROWS = 1024
"""Up to here a native product in bfloat16, which never writes the weight to memory, is faster."""

BLOCK_BYTES = 16 * 2**20
"""A block of dequantised weight: it may stay in the last cache, and PyTorch prepares the input anew
for every block."""


class _Room(threading.local):
    """Where a block is dequantised, kept from call to call: fresh memory is slower."""

    held: Tensor | None = None

    def block(self, rows: int, columns: int, like: Tensor) -> Tensor:
        """[rows, columns] in the dtype of `like`, with whatever was there before."""
        needed = rows * columns * like.element_size()
        if self.held is None or self.held.numel() < needed:
            self.held = like.new_empty(needed, dtype=torch.uint8)
        return self.held[:needed].view(like.dtype).view(rows, columns)


_room = _Room()


def needs_gradient(*tensors: Tensor | None) -> bool:
    """Whether autograd must see what happens to these tensors."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


_on_gpu: dict[str, ModuleType | None] = {}


@torch.compiler.disable
def _look_for_triton() -> None:
    if find_spec("triton") is None:
        logger.warning(
            "triton is not installed, so compressed layers run in PyTorch on the GPU, slower; "
            "install it in the version that this torch wants"
        )
        _on_gpu["kernels"] = None
        return
    from spqlm.kernels import triton

    _on_gpu["kernels"] = triton


def kernels_in_triton() -> ModuleType | None:
    """`spqlm.kernels.triton`, or None where Triton is not installed, which is logged once.

    Looking for it breaks a graph that is being traced; a call before that has it found.
    """
    if "kernels" not in _on_gpu:
        _look_for_triton()
    return _on_gpu["kernels"]


def gpu_kernels(x: Tensor) -> ModuleType | None:
    """`kernels_in_triton` if x is on a GPU; imported by the first x that is."""
    return kernels_in_triton() if x.is_cuda else None


Stored = tuple[Tensor, Tensor | None, Tensor | None]
"""A weight as it lies in memory: the weight or its codes, the scale, and the bias."""


def native_low_rank(x: Tensor, right: Stored, left: Stored) -> Tensor | None:
    """Few rows times both factors of a low-rank weight, in one call; None where that cannot be.

    The vector between the factors stays in float32.

    Args:
        x: [..., in], in any layout.
        right: [rank, in], and scale and bias where it has them.
        left: [out, rank], the same.

    Returns:
        [..., out] in the dtype of x, not differentiable.
    """
    if needs_gradient(x, *right, *left):
        return None
    if (kernels := gpu_kernels(x)) is not None:
        return kernels.low_rank(x, right, left)
    if x.dtype not in native.FLOATS or not x.numel() or x.numel() > FEW_ROWS * x.shape[-1]:
        return None
    x = x.contiguous()
    if not (native.addressable(x) and native.usable(*right) and native.usable(*left)):
        return None
    library = native.library()
    if library is None:
        return None
    inner, outer = native.matrix_of(*right), native.matrix_of(*left)
    if x.shape[-1] != inner.columns or inner.rows != outer.columns:
        return None
    return native.linear(library, x, outer, inner)


def native_product(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor | None:
    """Inputs times the weight, transposed, plus bias; None where the native kernels cannot.

    Args:
        x: [..., in], in any layout.
        codes: int8 [out, in], or packed 4-bit codes, uint8 [out, in / 2].
        scale: [out] or [1], or with packed codes [out, groups].
        bias: [out] or None.

    Returns:
        [..., out] in the dtype of x, not differentiable.
    """
    if (kernels := gpu_kernels(x)) is not None:
        return kernels.product(x, codes, scale, bias)
    if not native.usable(codes, scale, bias):
        return None
    return _product(x, native.matrix_of(codes, scale, bias), bias, FEW_ROWS)


def native_weight(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor | None:
    """The weight in a float type, in memory of its own; None where the native kernels cannot.

    Args:
        codes: int8 [out, in], or packed 4-bit codes, uint8 [out, in / 2].
        scale: [out] or [1], or with packed codes [out, groups].
        dtype: of the result.

    Returns:
        [out, in], not differentiable.
    """
    library = native.library() if native.usable(codes, scale, None) else None
    if library is None or dtype not in native.FLOATS:
        return None
    matrix = native.matrix_of(codes, scale, None)
    weight = torch.empty(matrix.rows, matrix.columns, dtype=dtype)
    native.dequantize(library, matrix, 0, matrix.rows, weight)
    return weight


def native_sparse_product(x: Tensor, weight: GroupSparse, bias: Tensor | None) -> Tensor | None:
    """As `native_product`, for a weight of which only some groups are stored.

    Args:
        x: [..., in], in any layout.
        weight: [out, in] in stored form.
        bias: [out] or None.
    """
    if (kernels := gpu_kernels(x)) is not None:
        return kernels.sparse_product(x, weight, bias)
    if not sparse.usable(weight, bias):
        return None
    return _product(x, sparse.matrix_of(weight, bias), bias, FEW_ROWS_SPARSE)


def _product(x: Tensor, matrix: native.Matrix, bias: Tensor | None, few: int) -> Tensor | None:
    library = native.library()
    if library is None or x.dtype not in native.FLOATS or not x.numel():
        return None
    x = x.contiguous()
    if not native.addressable(x) or matrix.rows == 0 or x.shape[-1] != matrix.columns:
        return None
    if x.numel() <= few * matrix.columns:
        return native.linear(library, x, matrix)
    if x.dtype == torch.bfloat16 and x.numel() <= MANY_ROWS * matrix.columns:
        y = native.linear_many(library, x, matrix)
        if y is not None:
            return y
    wide = x.to(arithmetic(x.dtype))
    height = max(1, BLOCK_BYTES // (wide.element_size() * matrix.columns))
    weight = _room.block(min(height, matrix.rows), matrix.columns, wide)
    if height >= matrix.rows:
        native.dequantize(library, matrix, 0, matrix.rows, weight)
        y = functional.linear(wide, weight, None if bias is None else bias.to(wide.dtype))
        return y.to(x.dtype)
    y = wide.new_empty(*x.shape[:-1], matrix.rows)
    for first in range(0, matrix.rows, height):
        last = min(first + height, matrix.rows)
        native.dequantize(library, matrix, first, last, weight)
        block = y.view(-1, matrix.rows)[:, first:last]
        torch.mm(wide.view(-1, matrix.columns), weight[: last - first].T, out=block)
    return (y if bias is None else y.add_(bias.to(wide.dtype))).to(x.dtype)
