"""Activations times packed 4-bit weights, without keeping a float copy of the weight."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from spq.kernels.dispatch import native_product, needs_gradient
from spq.numerics.integer import dequantize, unpack_int4


class _Int4Linear(torch.autograd.Function):
    """Saves the codes for the backward pass; plain autograd would save the weight in float."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(codes, scale, x if ctx.needs_input_grad[2] else None)
        return functional.linear(x, dequantize(codes, scale.to(x.dtype)))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        codes, scale, x = ctx.saved_tensors
        (gradient,) = gradients
        grad_x = grad_scale = None
        if ctx.needs_input_grad[0]:
            grad_x = gradient @ dequantize(codes, scale.to(gradient.dtype))
        if ctx.needs_input_grad[2]:
            rows = gradient.reshape(-1, len(codes))
            grad_weight = rows.T @ x.reshape(-1, x.shape[-1])
            grouped = (grad_weight.float() * unpack_int4(codes)).unflatten(1, (scale.shape[1], -1))
            grad_scale = grouped.sum(2).to(scale.dtype)
        return grad_x, None, grad_scale


def int4_linear(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """Linear layer over 4-bit weights in groups.

    Args:
        x: [..., in], floating point.
        codes: packed, uint8 [out, in / 2].
        scale: [out, groups].
        bias: [out] or None.

    Returns:
        [..., out] in the dtype of x. Differentiable in x and scale.
    """
    if needs_gradient(x, scale, bias):
        product: Tensor = _Int4Linear.apply(x, codes, scale)
    else:
        found = native_product(x, codes, scale, bias)
        if found is not None:
            return found
        product = functional.linear(x, dequantize(codes, scale.to(x.dtype)))
    return product if bias is None else product + bias.to(x.dtype)
