"""Compressed layers on a GPU, in Triton: what `kernels.product` calls for CUDA tensors.

Importing this package imports Triton, so it is imported only where such a tensor arrives.
"""

import torch
from torch import Tensor

from spqlm.formats import StoredWeight
from spqlm.kernels.triton import linear, sparse_linear
from spqlm.kernels.triton.int8_linear import int8_product
from spqlm.kernels.triton.linear import low_rank
from spqlm.kernels.triton.ready import FewRows

__all__ = ["int8_product", "low_rank", "product", "ready", "restored", "take_rows"]


def product(x: Tensor, weight: StoredWeight, bias: Tensor | None) -> Tensor | None:
    """Inputs times a stored weight, transposed, plus bias; None where there is no kernel for it.

    Args:
        x: [..., in], in any layout.
        weight: [out, in].
        bias: [out] or None.

    Returns:
        [..., out] in the dtype of x, not differentiable.
    """
    found = linear.product(x, weight, bias)
    return sparse_linear.sparse_product(x, weight, bias) if found is None else found


def ready(x: Tensor, weight: StoredWeight, bias: Tensor | None) -> FewRows | None:
    """The product with few rows of input such as x [..., in], to be called again and again.

    It is a function of tensors with the shape, dtype and device of x, which has no gaps. None for
    many rows of input, and where there is no kernel.
    """
    found = linear.ready(x, weight, bias)
    return sparse_linear.ready(x, weight, bias) if found is None else found


def restored(weight: StoredWeight, dtype: torch.dtype) -> Tensor | None:
    """The weight [out, in] in a float dtype, not differentiable; None where no kernel can."""
    found = linear.restored(weight, dtype)
    return sparse_linear.restored(weight, dtype) if found is None else found


def take_rows(weight: StoredWeight, index: Tensor) -> Tensor | None:
    """Rows [taken, in] in the dtype of the scales, not differentiable; None where no kernel can.

    Args:
        weight: [out, in].
        index: int64 [taken]; one outside [0, out) gives a row of NaN.
    """
    return linear.restored(weight, index=index)
