"""Activations times int8 weights, without keeping a float copy of the weight."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from spqlm.kernels.dispatch import native_product, native_weight, needs_gradient


def _product(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    found = native_product(x, codes, scale, bias)
    if found is not None:
        return found
    if x.dtype == torch.float16:
        # Sums of x · code leave float16's range where those of x · weight do not.
        product = functional.linear(x, codes.to(x.dtype) * scale.to(x.dtype)[:, None])
    else:
        # Codes up to 127 are exact in every float dtype, so only the products round.
        product = functional.linear(x, codes.to(x.dtype)) * scale.to(x.dtype)
    return product if bias is None else product + bias.to(x.dtype)


class _Int8Linear(torch.autograd.Function):
    """Saves the codes for the backward pass; plain autograd would save the weight in float."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
        needs_input = ctx.needs_input_grad[2]
        ctx.save_for_backward(codes, scale, x if needs_input else None)
        return _product(x, codes, scale.detach())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        codes, scale, x = ctx.saved_tensors
        (gradient,) = gradients
        grad_x = grad_scale = None
        if ctx.needs_input_grad[0]:
            weight = native_weight(codes, scale.detach(), gradient.dtype)
            if weight is None:
                grad_x = (gradient * scale.to(gradient.dtype)) @ codes.to(gradient.dtype)
            else:
                grad_x = gradient @ weight
        if ctx.needs_input_grad[2]:
            unscaled = _product(x, codes, torch.ones_like(scale))
            per_row = (gradient * unscaled).float().reshape(-1, len(codes)).sum(0)
            grad_scale = (per_row if len(scale) > 1 else per_row.sum(0, keepdim=True)).to(
                scale.dtype
            )
        return grad_x, None, grad_scale


def int8_linear(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """Scale · (codes x) + bias.

    Args:
        x: [..., in], floating point.
        codes: int8 [out, in].
        scale: [out] or [1].
        bias: [out] or None.

    Returns:
        [..., out] in the dtype of x. Differentiable in x and scale.
    """
    if needs_gradient(x, scale, bias):
        product: Tensor = _Int8Linear.apply(x, codes, scale)
        return product if bias is None else product + bias.to(x.dtype)
    return _product(x, codes, scale, bias)
