"""Activations times group-sparse weights, without keeping a float copy of the weight."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from spqlm.kernels.dispatch import native_sparse_product, needs_gradient
from spqlm.numerics.group_sparse import GroupSparse, dequantize, stored_codes


class _GroupSparseLinear(torch.autograd.Function):
    """Saves the codes for the backward pass; plain autograd would save the weight in float."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero: Tensor | None, weight: Any) -> Tensor:
        weight = weight._replace(scale=scale, zero=zero)
        wanted = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        ctx.weight, ctx.x = weight, x if wanted else None
        return functional.linear(x, dequantize(weight).to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        weight: GroupSparse = ctx.weight
        grad_x = grad_scale = grad_zero = None
        if ctx.needs_input_grad[0]:
            grad_x = gradient @ dequantize(weight).to(gradient.dtype)
        if ctx.x is not None:
            rows = gradient.reshape(-1, gradient.shape[-1])
            whole = rows.T @ ctx.x.reshape(-1, ctx.x.shape[-1])
            kept = whole.unflatten(1, (weight.groups, -1))[weight.keep].float()
            if ctx.needs_input_grad[1]:
                grad_scale = (kept * stored_codes(weight)).sum(1).to(weight.scale.dtype)
            if ctx.needs_input_grad[2] and weight.zero is not None:
                grad_zero = kept.sum(1).to(weight.zero.dtype)
        return grad_x, grad_scale, grad_zero, None


def group_sparse_linear(x: Tensor, weight: GroupSparse, bias: Tensor | None) -> Tensor:
    """Linear layer over group-sparse integers.

    Args:
        x: [..., columns], floating point.
        weight: [rows, columns] in stored form.
        bias: [rows] or None.

    Returns:
        [..., rows] in the dtype of x. Differentiable in x, scale and zero.
    """
    if needs_gradient(x, weight.scale, weight.zero, bias):
        product: Tensor = _GroupSparseLinear.apply(x, weight.scale, weight.zero, weight)
    else:
        found = native_sparse_product(x, weight, bias)
        if found is not None:
            return found
        product = functional.linear(x, dequantize(weight).to(x.dtype))
    return product if bias is None else product + bias.to(x.dtype)
