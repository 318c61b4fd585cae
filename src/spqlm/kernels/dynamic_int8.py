"""int8 weights times inputs that are rounded to int8 as they come: integers multiply faster."""

import torch
from torch import Tensor
from torch.nn import functional

from spqlm import native
from spqlm.formats.int8 import Int8, Int8Weight
from spqlm.kernels.gpu import kernels_for
from spqlm.kernels.product import FEW_ROWS, needs_gradient
from spqlm.kernels.weights import matrix_of
from spqlm.numerics.integer import quantize_tokens

# Rows that are multiplied at a time: the sums take four bytes each.
BLOCK_ROWS = 512
PER_TENSOR, PER_CHANNEL = Int8(granularity="per_tensor"), Int8(granularity="per_channel")
INTEGERS_ARE_FAST = bool(torch.cpu._is_vnni_supported())
"""Whether PyTorch multiplies int8 with an instruction of this processor, and not in a loop, which
takes 27 times as long as floats do."""


def dynamic_int8_linear(
    x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None
) -> Tensor | None:
    """Many rows of input, each rounded to nearest at a scale of its own.

    Each element of a row is off by at most half a step of max |x| / 127.

    Args:
        x: [..., in], floating point.
        codes: int8 [out, in].
        scale: [out] or [1].
        bias: [out] or None.

    Returns:
        [..., out] in the dtype of x, not differentiable; None for few rows, where the weight's
        bytes are what costs time, where gradients are needed, and where torch cannot.
    """
    rows = x.reshape(-1, x.shape[-1])
    if len(rows) <= FEW_ROWS or needs_gradient(x, scale, bias):
        return None
    if (kernels := kernels_for(x)) is not None:
        found: Tensor | None = kernels.int8_product(rows, codes, scale, bias)
        if found is not None:
            return found.view(*x.shape[:-1], len(codes))
    if not _possible(codes):
        return None
    if (found := _native(x, codes, scale, bias)) is not None:
        return found
    y = rows.new_empty(len(rows), len(codes))
    for start in range(0, len(rows), BLOCK_ROWS):
        rounded, step = quantize_tokens(rows[start : start + BLOCK_ROWS])
        if INTEGERS_ARE_FAST or not codes.is_cpu:
            found = (torch._int_mm(rounded, codes.T) * step).mul_(scale.float())
        else:
            found = _in_floats(rounded, codes, scale).mul_(step)
        # Rounded once, as a compiled model does.
        y[start : start + BLOCK_ROWS] = found if bias is None else found.add_(bias.float())
    return y.view(*x.shape[:-1], len(codes))


def _native(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor | None:
    """By the native kernel, or None where there is none or PyTorch is as fast."""
    library = native.library() if codes.is_cpu else None
    if library is None or x.dtype not in native.FLOATS or torch.compiler.is_compiling():
        return None
    x, matrix = x.contiguous(), matrix_of(_weight(codes, scale), bias)
    if matrix is None or matrix.rows == 0 or not native.addressable(x):
        return None
    return native.linear_int8_inputs(library, x, matrix)


def _weight(codes: Tensor, scale: Tensor) -> Int8Weight:
    return Int8Weight(PER_TENSOR if len(scale) < len(codes) else PER_CHANNEL, codes, scale)


def _in_floats(rounded: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """The same in float32, which holds each product exactly, and sums up to 24 bits.

    Args:
        rounded: int8 [rows, in].
        codes: int8 [out, in].
        scale: [out] or [1].

    Returns:
        float32 [rows, out].
    """
    return functional.linear(rounded.float(), codes.float()).mul_(scale.float())


def _possible(codes: Tensor) -> bool:
    """Whether torch multiplies integers there; on a GPU the sides must be multiples of 8."""
    if codes.is_cpu:
        return True
    return codes.is_cuda and not any(side % 8 for side in codes.shape)
