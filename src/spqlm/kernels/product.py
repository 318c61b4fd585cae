"""Products with a stored weight, whatever its format: which arithmetic serves the call at hand.

Where there are kernels that know the weight's layout (native ones on a CPU, in Triton on a GPU):
few rows of input go to a kernel that reads the codes as they are stored, which costs their bytes;
for many rows the weight is turned into the dtype of the activations (or float32, where the
processor multiplies that faster), on a CPU a block at a time, in a cache for a native product or
for PyTorch's, which costs arithmetic. Everything else (a format without kernels, another device,
float64) goes to the format's PyTorch reference. `torch.compile` sees one operation that does all of
this when it runs. docs/kernel-measurements.md says why.
"""

import threading
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from spqlm import native
from spqlm.formats import StoredWeight
from spqlm.kernels import operation
from spqlm.kernels.gpu import kernels_for
from spqlm.kernels.weights import matrix_of
from spqlm.kernels.widening import FEW, arithmetic, widened_products

FEW_ROWS = 16
"""Up to here the kernels for few rows are the faster ones."""

FEW_ROWS_SPARSE = 32
"""The same for weights of which only some groups are stored: they leave work out, too."""

MANY_ROWS = 1024
"""Up to here a native product in bfloat16, which never writes the weight to memory, is faster."""

BLOCK_BYTES = 16 * 2**20
"""A block of dequantised weight: it may stay in the last cache, and PyTorch prepares the input anew
for every block."""


class _Workspace(threading.local):
    """Where a block is dequantised, kept from call to call: fresh memory is slower."""

    held: Tensor | None = None

    def block(self, rows: int, columns: int, like: Tensor) -> Tensor:
        """[rows, columns] in the dtype of `like`, with whatever was there before."""
        needed = rows * columns * like.element_size()
        if self.held is None or self.held.numel() < needed:
            self.held = like.new_empty(needed, dtype=torch.uint8)
        return self.held[:needed].view(like.dtype).view(rows, columns)


_workspace = _Workspace()


def needs_gradient(*tensors: Tensor | None) -> bool:
    """Whether autograd must see what happens to these tensors."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def linear(x: Tensor, weight: StoredWeight, bias: Tensor | None) -> Tensor:
    """Linear layer over a stored weight; no float copy of it is kept.

    Args:
        x: [..., in], floating point.
        weight: [out, in].
        bias: [out] or None.

    Returns:
        [..., out] in the dtype of x. Differentiable in x, bias and what of the weight is `trained`.
        Within `torch.func` PyTorch's own operations do it, on a float copy.
    """
    if torch.is_grad_enabled() and not native.transformed():
        trained = [getattr(weight, name) for name in weight.trained]
        if needs_gradient(x, bias, *trained):
            product: Tensor = _Linear.apply(x, weight.detach(), *trained)
            return product if bias is None else product + bias.to(x.dtype)
    return _product(x, weight, bias)


class _Linear(torch.autograd.Function):
    """Keeps the codes for the backward pass; plain autograd would keep the weight in float."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: StoredWeight, *trained: Tensor | None) -> Tensor:
        ctx.weight = weight
        ctx.save_for_backward(x if any(ctx.needs_input_grad[2:]) else None)
        return _product(x, weight, None)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (x,) = gradients, ctx.saved_tensors
        weight: StoredWeight = ctx.weight
        grads: tuple[Tensor | None, ...] = (None,) * len(weight.trained)
        values = restored(weight, gradient.dtype)
        grad_x = gradient @ values if ctx.needs_input_grad[0] else None
        if x is not None:
            rows = gradient.reshape(-1, gradient.shape[-1])
            grads = weight.gradients(rows.T @ x.reshape(-1, x.shape[-1]), values)
        return grad_x, None, *grads


def _product(x: Tensor, weight: StoredWeight, bias: Tensor | None) -> Tensor:
    if operation.wanted(x):
        return _traced(x, [weight], bias)
    return _run(x, weight, bias)


def _run(x: Tensor, weight: StoredWeight, bias: Tensor | None) -> Tensor:
    found = fast_product(x, weight, bias)
    if found is not None:
        return found
    many = x.is_cpu and x.numel() >= FEW * x.shape[-1] and not native.transformed()
    with widened_products(x.dtype) if many else nullcontext():
        return weight.product(x, bias)


def _run_factors(x: Tensor, weights: Sequence[StoredWeight], bias: Tensor | None) -> Tensor:
    """What the operation that `torch.compile` sees does when it runs."""
    *inner, last = weights
    for right in inner:
        found = _fast_low_rank(x, right, last, bias)
        if found is not None:
            return found
        x = _run(x, right, None)
    return _run(x, last, bias)


_traced = operation.register("spqlm::product", _run_factors)


def restored(weight: StoredWeight, dtype: torch.dtype) -> Tensor:
    """The weight in a float dtype, [out, in], not differentiable; by kernels if they can."""
    kernels = kernels_for(next(iter(weight.tensors().values())))
    if kernels is not None and dtype in native.FLOATS:
        restored: Tensor | None = kernels.restored(weight, dtype)
        if restored is not None:
            return restored
    library = native.library()
    if library is not None and dtype in native.FLOATS:
        matrix = matrix_of(weight, None)
        if matrix is not None:
            found = torch.empty(matrix.rows, matrix.columns, dtype=dtype)
            native.dequantize(library, matrix, 0, matrix.rows, found)
            return found
    return weight.detach().restore(dtype)


def fast_product(x: Tensor, weight: StoredWeight, bias: Tensor | None) -> Tensor | None:
    """Inputs times the weight, transposed, plus bias; None where no kernel can.

    Args:
        x: [..., in], in any layout.
        weight: [out, in].
        bias: [out] or None.

    Returns:
        [..., out] in the dtype of x, not differentiable.
    """
    if (kernels := kernels_for(x)) is not None:
        return kernels.product(x, weight, bias)
    library = native.library()
    if library is None or x.dtype not in native.FLOATS or not x.numel():
        return None
    x, matrix = x.contiguous(), matrix_of(weight, bias)
    if matrix is None or not native.addressable(x):
        return None
    if matrix.rows == 0 or x.shape[-1] != matrix.columns:
        return None
    few = FEW_ROWS if matrix.mask is None else FEW_ROWS_SPARSE
    if x.numel() <= few * matrix.columns:
        return native.linear(library, x, matrix)
    if x.dtype == torch.bfloat16 and x.numel() <= MANY_ROWS * matrix.columns:
        y = native.linear_many(library, x, matrix)
        if y is not None:
            return y
    return _by_blocks(x, matrix, bias)


def _by_blocks(x: Tensor, matrix: native.Matrix, bias: Tensor | None) -> Tensor:
    """Many rows, by PyTorch's product with as much of the weight at a time as a cache holds."""
    library = native.library()
    assert library is not None
    wide = x.to(arithmetic(x.dtype))
    height = max(1, BLOCK_BYTES // (wide.element_size() * matrix.columns))
    weight = _workspace.block(min(height, matrix.rows), matrix.columns, wide)
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


def take_rows(weight: StoredWeight, index: Tensor) -> Tensor:
    """Rows of a weight in the dtype of its scales: what an embedding looks up.

    Args:
        weight: [rows, columns].
        index: int64 [taken], each in [0, rows).

    Returns:
        [taken, columns]. Differentiable in what of the weight is `trained`.
    """
    # Compilers fuse what a look-up does, and cannot trace the launch of a kernel.
    kernels = None if torch.compiler.is_compiling() else kernels_for(index)
    if kernels is not None and not needs_gradient(*weight.tensors().values()):
        found: Tensor | None = kernels.take_rows(weight, index)
        if found is not None:
            return found
    return weight.take_rows(index).restore()


def low_rank(
    x: Tensor, right: StoredWeight, left: StoredWeight, bias: Tensor | None
) -> Tensor | None:
    """Few rows times both factors of a low-rank weight, in one call; None where that cannot be.

    The vector between the factors stays in float32.

    Args:
        x: [..., in], in any layout.
        right: [rank, in].
        left: [out, rank].
        bias: [out] or None.

    Returns:
        [..., out] in the dtype of x, not differentiable.
    """
    if needs_gradient(x, bias, *right.tensors().values(), *left.tensors().values()):
        return None
    if operation.wanted(x):
        return _traced(x, [right, left], bias)
    return _fast_low_rank(x, right, left, bias)


def _fast_low_rank(
    x: Tensor, right: StoredWeight, left: StoredWeight, bias: Tensor | None
) -> Tensor | None:
    if (kernels := kernels_for(x)) is not None:
        return kernels.low_rank(x, right, left, bias)
    if x.dtype not in native.FLOATS or not x.numel() or x.numel() > FEW_ROWS * x.shape[-1]:
        return None
    library = native.library()
    if library is None:
        return None
    x, inner, outer = x.contiguous(), matrix_of(right, None), matrix_of(left, bias)
    if inner is None or outer is None or not native.addressable(x):
        return None
    if x.shape[-1] != inner.columns or inner.rows != outer.columns:
        return None
    return native.linear(library, x, outer, inner)
