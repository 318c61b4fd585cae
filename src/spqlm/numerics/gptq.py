"""Rounding that corrects itself: GPTQ (arXiv 2210.17323) with any positive metric.

Columns are rounded one after the other; what each rounding got wrong is made up for by the columns
not yet rounded, in the least-squares sense of the metric H. Updates reach the columns of a block at
once and the rest of the matrix after the block.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from spqlm.numerics.integer import check_scales, code_range, quantize, search_group_scale
from spqlm.numerics.threads import threads_for

BLOCK = 128
# Share of the median of H's diagonal that is added to all of it.
DAMPING = 0.1
# Raised damping starts and ends here.
SMALLEST_DAMPING = 1e-6
LARGEST_DAMPING = 1e4


def damped(hessian: Tensor, share: float) -> Tensor:
    """H with a ridge of `share` of the median of its diagonal.

    The median, because a single channel of huge activations would make a share of the mean larger
    than every ordinary direction. Channels that never fire get a one on the diagonal.

    Args:
        hessian: [n, n], symmetric, positive semi-definite.
        share: of the median of the positive diagonal entries.

    Returns:
        a new [n, n] matrix, positive definite for share > 0.
    """
    found = hessian.clone()
    found.diagonal().add_(ridge(hessian.diagonal(), share))
    return found


def ridge(diagonal: Tensor, share: float) -> Tensor:
    """What `damped` adds to the diagonal of H, [n] -> [n]."""
    alive = diagonal > 0
    added = share * diagonal[alive].median() if bool(alive.any()) else diagonal.new_tensor(1.0)
    return torch.where(alive, added, torch.ones_like(diagonal))


def inverse(hessian: Tensor, share: float = DAMPING) -> Tensor:
    """Inverse of the damped H, in float64.

    In float32 one direction of huge activations makes it fail, and the damping that it then takes
    swamps all others. Damping is raised tenfold until the factorisation succeeds.

    Returns:
        float64 [n, n], positive definite.

    Raises:
        ValueError: H is not finite, or far from positive semi-definite.
    """
    with threads_for(len(hessian)):
        lower, _ = _cholesky(hessian, share)
        return torch.cholesky_inverse(lower)


def inverse_factor(hessian: Tensor, share: float = DAMPING) -> tuple[Tensor, float]:
    """Upper Cholesky factor of the inverse of the damped H.

    Returns:
        U float32 [n, n] with Uᵀ U = (H + damping)⁻¹, and the share that was used, which is raised
        as for `inverse`.

    Raises:
        ValueError: as for `inverse`.
    """
    with threads_for(len(hessian)):
        while True:
            lower, share = _cholesky(hessian, share)
            inverted = torch.cholesky_inverse(lower)
            del lower
            upper, failed = torch.linalg.cholesky_ex(inverted, upper=True)
            del inverted
            if not failed:
                return upper.to(torch.float32), share
            share = _raised(share)


def _cholesky(hessian: Tensor, share: float) -> tuple[Tensor, float]:
    if not bool(torch.isfinite(hessian).all()):
        raise ValueError("the Hessian holds NaN or Inf")
    # One copy: the ridge of each attempt is that of H itself.
    hessian = hessian.to(torch.float64, copy=True)
    diagonal = hessian.diagonal().clone()
    while share <= LARGEST_DAMPING:
        hessian.diagonal().copy_(diagonal + ridge(diagonal, share))
        lower, failed = torch.linalg.cholesky_ex(hessian)
        if not failed:
            return lower, share
        share = _raised(share)
    raise ValueError("the Hessian is not positive semi-definite")


def _raised(share: float) -> float:
    return max(10 * share, SMALLEST_DAMPING)


def sweep(
    weight: Tensor,
    factor: Tensor,
    group_size: int,
    round_group: Callable[[slice, Tensor, Tensor], Callable[[int, Tensor], Tensor]],
) -> None:
    """Replace column after column; those to the right make up for what each replacement changes.

    Args:
        weight: [rows, columns]; left as it is.
        factor: of the metric of errors, see `inverse_factor`.
        group_size: columns that are looked at together when their turn comes.
        round_group: from a group's columns, its weights as they are by then [rows, group_size] and
            what an error in each costs after later columns have made up for it [group_size], to
            what a column [rows] is replaced with, given its place in the group.
    """
    # A column of the weight lies together: it is what is read and changed.
    columns = weight.to(torch.float32).T.clone(memory_format=torch.contiguous_format)
    diagonal = factor.diagonal()
    # As tensors: numbers would have to be waited for on a GPU.
    importance, divisors = diagonal.square().reciprocal(), diagonal.unbind()
    step = max(BLOCK // group_size, 1) * group_size
    for start in range(0, len(columns), step):
        stop = min(start + step, len(columns))
        errors = torch.empty_like(columns[start:stop])
        for column in range(start, stop):
            place = column % group_size
            if place == 0:
                group = slice(column, column + group_size)
                replace = round_group(group, columns[group].T, importance[group])
            value = columns[column]
            error = (value - replace(place, value)).div_(divisors[column])
            columns[column:stop].addr_(factor[column, column:stop], error, alpha=-1)
            errors[column - start] = error
        columns[stop:].addmm_(factor[start:stop, stop:].T, errors, alpha=-1)


def round_groups(
    weight: Tensor,
    hessian: Tensor,
    group_size: int,
    bits: int,
    damping: float = DAMPING,
    factor: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Codes and scales of groups; a group's scale is searched when its turn comes.

    Args:
        weight: [rows, columns]; `group_size` divides columns.
        hessian: metric of errors [columns, columns].
        group_size: columns that share a scale.
        bits: of a code, 2 to 7.
        damping: see `damped`.
        factor: of the damped H, see `inverse_factor`, where it is at hand.

    Returns:
        int8 codes [rows, columns] in `code_range(bits)` and float32 scales [rows, groups].

    Raises:
        ValueError: a weight is not finite, or too large for a scale.
    """
    factor = inverse_factor(hessian, damping)[0] if factor is None else factor
    # As the sweep holds the weight: a column lies together.
    codes = torch.empty(weight.shape[::-1], dtype=torch.int8, device=weight.device)
    scales, limits = [], code_range(bits)

    def round_group(
        group: slice, values: Tensor, importance: Tensor
    ) -> Callable[[int, Tensor], Tensor]:
        scale = search_group_scale(values, importance, group_size, bits, checked=False)[:, 0]
        scales.append(scale)

        def replace(place: int, value: Tensor) -> Tensor:
            rounded = (value / scale).round_().clamp_(*limits)
            codes[group.start + place] = rounded
            return rounded.mul_(scale)

        return replace

    sweep(weight, factor, group_size, round_group)
    found = torch.stack(scales, dim=1)
    check_scales(found)
    return codes.T.contiguous(), found


def round_int8(weight: Tensor, hessian: Tensor, scale: Tensor, damping: float = DAMPING) -> Tensor:
    """8-bit codes at given scales.

    Args:
        weight: [rows, columns].
        hessian: metric of errors [columns, columns].
        scale: [rows] or [1].
        damping: see `damped`.

    Returns:
        int8 [rows, columns].
    """
    scale = scale.to(torch.float32)
    factor, _ = inverse_factor(hessian, damping)
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)

    def round_group(group: slice, _: Tensor, __: Tensor) -> Callable[[int, Tensor], Tensor]:
        def replace(place: int, value: Tensor) -> Tensor:
            codes[:, group.start] = quantize(value[:, None], scale)[:, 0]
            return codes[:, group.start] * scale

        return replace

    sweep(weight, factor, 1, round_group)
    return codes


def predicted_loss(error: Tensor, hessian: Tensor, output: Tensor) -> float:
    """½ Σ_i E[g_i²] (ΔW H ΔWᵀ)_ii: what changing a weight by `error` costs.

    Args:
        error: ΔW [rows, columns].
        hessian: E[‖g‖² x xᵀ] / E[‖g‖²], [columns, columns].
        output: E[g_i²] of the gradient of the summed loss at the output, [rows].

    Returns:
        nats per token.
    """
    return float(row_losses(error, hessian, output).sum())


def row_losses(error: Tensor, hessian: Tensor, output: Tensor) -> Tensor:
    """`predicted_loss` row by row, float32 [rows]."""
    error = error.to(torch.float32)
    return 0.5 * output * ((error @ hessian) * error).sum(1)
