"""Truncation that loses the least of a layer's output: SVD-LLM (arXiv 2403.07378)."""

import torch
from torch import Tensor


def whitened_truncate(weight: Tensor, hessian: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The rank-r matrix that minimises E‖(W - W_r) x‖².

    With L Lᵀ = E[x xᵀ] the paper truncates the SVD of W L and multiplies by L⁻¹. That is the
    projection onto the leading eigenvectors of W E[x xᵀ] Wᵀ, for which nothing is inverted.

    Args:
        weight: W [out, in], any float dtype.
        hessian: E[x xᵀ] [in, in].
        rank: r in [1, min(out, in)].

    Returns:
        left [out, r] and right [r, in], float32; the right one carries the magnitudes.
    """
    exact = weight.to(torch.float64)
    leading = torch.linalg.eigh(exact @ hessian.double() @ exact.T).eigenvectors.flip(1)[:, :rank]
    return leading.float().contiguous(), (leading.T @ exact).float().contiguous()
