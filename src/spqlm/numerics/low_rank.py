"""Truncated singular value decomposition, computed through the smaller Gram matrix.

Eigenvalues of W Wᵀ (or Wᵀ W, whichever is smaller) are the squared singular values, which is what
retained variance sums, and cost a fraction of a full decomposition. Its leading eigenvectors give
the best rank-r approximation as a projection, so no singular value is ever divided by.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from spqlm.numerics.threads import threads_for

SingularValuesIn = Literal["left", "right", "both"]
# Share of the mean E[g²] that an output without gradients counts for.
DEAD_OUTPUT = 1e-6
# Of a matrix with larger or smaller powers of two, squares may leave float32's range.
MODERATE = 32
# Largest magnitude of a factor in float16 that keeps its digits.
SMALLEST_PEAK = 2.0**-6


def _normalised(weight: Tensor) -> tuple[Tensor, float]:
    """W / p², float32, whose squares are in range, and p, a power of two."""
    weight = weight.to(torch.float32)
    peak = float(torch.linalg.vector_norm(weight, torch.inf))
    exponent = math.frexp(peak)[1] if math.isfinite(peak) else 0
    if abs(exponent) < MODERATE:
        return weight, 1.0
    root = 2.0 ** (exponent // 2)
    return weight / root / root, root


def _gram(weight: Tensor) -> Tensor:
    """W Wᵀ or Wᵀ W of float32 W, [n, n] with n = min(W.shape)."""
    wide = weight if weight.shape[0] <= weight.shape[1] else weight.T
    return wide @ wide.T


def _eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, and eigenvectors in columns."""
    with threads_for(len(matrix)):
        values, vectors = torch.linalg.eigh(matrix)
    return values, vectors


def variances(weight: Tensor) -> Tensor:
    """Squared singular values of `weight`, in descending order.

    Args:
        weight: [out, in], any float dtype.

    Returns:
        float64 [min(out, in)], non-negative. Computed in float32: shares of the total below about
        1e-6 are rounding.
    """
    weight, root = _normalised(weight)
    gram = _gram(weight)
    with threads_for(len(gram)):
        return torch.linalg.eigvalsh(gram).flip(0).clamp_min_(0).double() * root**4


def rank_for_variance(variances: Tensor, variance: float) -> int:
    """Least r with sum(variances[:r]) >= variance * sum(variances) (SPQ, rank selection).

    Args:
        variances: squared singular values in descending order, [n].
        variance: τ in (0, 1]; 1 keeps the full rank.

    Returns:
        a rank in [1, n].

    Raises:
        ValueError: τ outside (0, 1].
    """
    if not 0 < variance <= 1:
        raise ValueError(f"variance must lie in (0, 1], got {variance}")
    if variance == 1:
        return len(variances)
    retained = variances.cumsum(0)
    return min(int((retained < variance * retained[-1]).sum()) + 1, len(variances))


def snap_rank(rank: int, in_features: int, out_features: int, multiple_of: int) -> int | None:
    """The rank to factorise a linear layer at, or None where that would not save anything.

    Rounds up to `multiple_of` where the rounded rank still saves, keeps the exact rank where only
    that does. A rank r saves where r · (in + out) < in · out.

    Returns:
        rank, or None to leave the layer dense.
    """
    rounded = -(-rank // multiple_of) * multiple_of
    for candidate in (rounded, rank):
        if candidate * (in_features + out_features) < in_features * out_features:
            return candidate
    return None


def truncate(
    weight: Tensor, rank: int, singular_values_in: SingularValuesIn = "right"
) -> tuple[Tensor, Tensor]:
    """Best rank-r approximation of `weight` as a product (Eckart–Young).

    Args:
        weight: [out, in], any float dtype.
        rank: r in [1, min(out, in)].
        singular_values_in: the factor that carries the singular values. `left` is the published
            U_r S_r, V_rᵀ; `right` lets per-row scales of a quantised right factor absorb them.

    Returns:
        left [out, r] and right [r, in], float32, with left @ right ≈ weight.
    """
    weight, root = _normalised(weight)
    wide = weight if weight.shape[0] <= weight.shape[1] else weight.T
    basis = _eigh(_gram(weight))[1].flip(1)[:, :rank].clone()
    projected = basis.T @ wide
    left, right = (basis, projected) if wide is weight else (projected.T, basis.T)
    values_are_in = "right" if wide is weight else "left"
    if singular_values_in != values_are_in:
        power = 0.5 if singular_values_in == "both" else 1.0
        values = torch.linalg.vector_norm(projected, dim=1)
        moved = values.clamp_min(torch.finfo(torch.float32).tiny) ** power
        left, right = (
            (left * moved, right / moved[:, None])
            if values_are_in == "right"
            else (left / moved, right * moved[:, None])
        )
    if root != 1.0:
        grown = {"left": (root**2, 1.0), "right": (1.0, root**2), "both": (root, root)}
        by_left, by_right = grown[singular_values_in]
        left, right = left * by_left, right * by_right
    return left.contiguous(), right.contiguous()


def in_range(left: Tensor, right: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Move a power of two between factors, so that a dtype holds them and what lies between them.

    ‖R x‖∞ ≤ √out ‖L R x‖∞ / σ_min(L): in float16, L grows until what R gives is no more than what
    the product gives, as far as R keeps its digits. Other dtypes have range enough for that.

    Args:
        left: L [out, r].
        right: R [r, in].
        dtype: that they are to be stored in.

    Returns:
        factors of the same product; as they are where nothing is beyond the range, or one is not
        finite.
    """
    peaks = [float(torch.linalg.vector_norm(factor, torch.inf)) for factor in (left, right)]
    if not 0 < min(peaks) <= max(peaks) < math.inf:
        return left, right
    most = math.log2(torch.finfo(dtype).max)
    range_left, range_right = (most - math.log2(peak) for peak in peaks)
    wanted = math.ceil(_between(left)) if dtype == torch.float16 else 0
    spare = max(math.floor(math.log2(peaks[1] / SMALLEST_PEAK)), 0)
    shift = max(min(wanted, spare, math.floor(range_left)), math.ceil(-range_right))
    return (left * 2.0**shift, right / 2.0**shift) if shift else (left, right)


def _between(left: Tensor) -> float:
    """log2 of √out / σ_min(L), no less than 0."""
    least = max(float(variances(left)[-1]), torch.finfo(torch.float32).tiny)
    return max(math.log2(len(left) / least) / 2, 0)


def weighted_basis(weight: Tensor, hessian: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
    """Directions of the output, by how much the loss minds losing them.

    The error of truncation costs ½ ‖D (W - W_r) L‖² with D² = diag(E[g²]) and L Lᵀ = H, so the best
    W_r keeps the leading left singular vectors of D W L (Eckart–Young in that metric). They are the
    eigenvectors of D W H Wᵀ D: no factor of H is needed, and nothing is inverted but D.

    Args:
        weight: W [out, in], any float dtype.
        hessian: H [in, in], positive semi-definite.
        output: E[g_i²], [out], >= 0.

    Returns:
        float64 losses [out] in descending order, in nats per token: rank r costs the sum of those
        from r on; and the basis, float64 [out, out], one direction per column, already in the units
        of the loss.
    """
    scaled = _root(output)[:, None] * weight.double()
    values, vectors = _eigh(scaled @ hessian.double() @ scaled.T)
    return 0.5 * values.flip(0).clamp_min_(0), vectors.flip(1)


def weighted_truncate(
    weight: Tensor, basis: Tensor, output: Tensor, rank: int
) -> tuple[Tensor, Tensor]:
    """The best rank-r approximation in the metric that `basis` was made in.

    Args:
        weight: W [out, in].
        basis: from `weighted_basis`.
        output: E[g_i²], the same.
        rank: r in [1, out].

    Returns:
        left [out, r] and right [r, in], float32; the right one carries the magnitudes.
    """
    root = _root(output)
    leading = basis[:, :rank]
    left = leading / root[:, None]
    right = leading.T @ (root[:, None] * weight.double())
    return left.float().contiguous(), right.float().contiguous()


def _root(output: Tensor) -> Tensor:
    """√E[g_i²], float64, with a floor where no gradient arrived: those rows still are rows."""
    output = output.double()
    mean = output.mean()
    return output.clamp_min(DEAD_OUTPUT * mean if mean > 0 else 1.0).sqrt()
