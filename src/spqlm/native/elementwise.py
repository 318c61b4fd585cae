"""Arithmetic between the products of a decoder layer, in one pass over memory."""

import torch
from torch import Tensor

from spqlm import native


def normalize(x: Tensor, weight: Tensor, epsilon: float) -> Tensor | None:
    """RMSNorm (arXiv 1910.07467): x / sqrt(mean x^2 + epsilon) * weight, in float32.

    Args:
        x: [..., width], in a float type.
        weight: [width].
        epsilon: added to the mean of squares.

    Returns:
        As x, rounded once, not differentiable; None where the native kernels cannot.
    """
    library = native.library()
    if library is None or not native.addressable(x, weight) or not _takes(x):
        return None
    if weight.shape != x.shape[-1:] or weight.dtype not in native.FLOATS:
        return None
    wide, y = weight.float(), torch.empty_like(x)
    library.spq_normalize(
        x.data_ptr(),
        native.DTYPES[x.dtype],
        x.numel() // x.shape[-1],
        x.shape[-1],
        wide.data_ptr(),
        epsilon,
        y.data_ptr(),
        torch.get_num_threads(),
    )
    return y


def gated(gate: Tensor, up: Tensor) -> Tensor | None:
    """silu(gate) * up (SwiGLU, arXiv 2002.05202), in float32.

    Args:
        gate: in a float type, of any shape.
        up: of the same type and shape.

    Returns:
        As gate, rounded once, not differentiable; None where the native kernels cannot.
    """
    library = native.library()
    if library is None or not native.addressable(gate, up) or not _takes(gate):
        return None
    if gate.shape != up.shape or gate.dtype != up.dtype:
        return None
    y = torch.empty_like(gate)
    library.spq_gated(
        gate.data_ptr(),
        up.data_ptr(),
        native.DTYPES[gate.dtype],
        gate.numel(),
        y.data_ptr(),
        torch.get_num_threads(),
    )
    return y


def _takes(x: Tensor) -> bool:
    return x.dtype in native.FLOATS and x.numel() > 0
