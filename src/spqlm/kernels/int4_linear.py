"""Activations times packed 4-bit weights, without keeping a float copy of the weight."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from spqlm.kernels.dispatch import native_product, native_weight, needs_gradient
from spqlm.numerics.integer import dequantize


def _weight(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    scale = scale.detach()
    found = native_weight(codes, scale, dtype)
    return dequantize(codes, scale.to(dtype)) if found is None else found


def _product(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    found = native_product(x, codes, scale, bias)
    if found is not None:
        return found
    return functional.linear(
        x, _weight(codes, scale, x.dtype), None if bias is None else bias.to(x.dtype)
    )


class _Int4Linear(torch.autograd.Function):
    """Saves the codes for the backward pass; plain autograd would save the weight in float."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(codes, scale, x if ctx.needs_input_grad[2] else None)
        return _product(x, codes, scale.detach(), None)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        codes, scale, x = ctx.saved_tensors
        (gradient,) = gradients
        grad_x = grad_scale = None
        if ctx.needs_input_grad[0]:
            grad_x = gradient @ _weight(codes, scale, gradient.dtype)
        if ctx.needs_input_grad[2]:
            rows = gradient.reshape(-1, len(codes))
            grad_weight = rows.T @ x.reshape(-1, x.shape[-1])
            values = _weight(codes, torch.ones_like(scale), grad_weight.dtype)
            grouped = (grad_weight * values).unflatten(1, (scale.shape[1], -1))
            wide = torch.promote_types(torch.float32, grouped.dtype)
            grad_scale = grouped.sum(2, dtype=wide).to(scale.dtype)
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
        return product if bias is None else product + bias.to(x.dtype)
    return _product(x, codes, scale, bias)
