"""The gradient of scales, from a weight and its gradient."""

import torch
from torch import Tensor

from spqlm.numerics.integer import wide


def gradient_of_scales(gradient: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """∂loss/∂scale = Σ_j gradient_j · weight_j / scale over each group: weights are scale · code.

    Codes need not be unpacked for it.

    Args:
        gradient: by the weight, floats [rows, columns].
        weight: [rows, columns], floats in the same dtype.
        scale: [rows, groups], not 0.

    Returns:
        [rows, groups] in the dtype of the scale.
    """
    # Small products would be lost in float16, whose exponents are few.
    dtype = torch.promote_types(gradient.dtype, torch.bfloat16)
    products = (gradient.to(dtype) * weight).unflatten(1, (scale.shape[1], -1))
    sums = products.sum(2, dtype=wide(dtype))
    return (sums / scale).to(scale.dtype)
