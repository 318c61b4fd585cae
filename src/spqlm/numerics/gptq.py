"""Rounding that corrects itself: GPTQ (arXiv 2210.17323) with any positive metric.

Columns are rounded one after the other; what each rounding got wrong is made up for by the columns
not yet rounded, in the least-squares sense of the metric H.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from spqlm.numerics import in_order
from spqlm.numerics.blocks import Grid, even_grid
from spqlm.numerics.in_order import Affine
from spqlm.numerics.integer import check_scales, search_group_scale
from spqlm.numerics.threads import threads_for
from spqlm.numerics.triangular import invert_lower_

# Share of the median of H's diagonal that is added to all of it.
DAMPING = 0.1
# Raised damping starts here.
SMALLEST_DAMPING = 1e-6
# Rows of a matrix that are copied at once.
COPIED = 1024


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

    With rows and columns in reverse order H is L Lᵀ. In their own order L is upper, and what is
    wanted is its inverse: no inverse of H, and one factorisation. That is in float64, see
    `inverse`; the factor is inverted in float32.

    Args:
        hessian: H, floats [n, n]; left as it is.
        share: damping, see `damped`.

    Returns:
        U float32 [n, n] with Uᵀ U = (H + damping)⁻¹, and the share that was used, which is raised
        as for `inverse`.

    Raises:
        ValueError: as for `inverse`.
    """
    with threads_for(len(hessian)):
        lower, share = _cholesky(hessian, share, reverse=True)
        narrow = lower.to(torch.float32)
        del lower
        return invert_lower_(narrow).flip(0, 1), share


def _cholesky(hessian: Tensor, share: float, *, reverse: bool = False) -> tuple[Tensor, float]:
    """L of the damped H, float64, and the share that was used; `reverse` turns H's order round.

    In the memory of one such matrix: an attempt takes the place of what it factorises.
    """
    if not bool(torch.isfinite(hessian).all()):
        raise ValueError("the Hessian holds NaN or Inf")
    diagonal = hessian.diagonal().to(torch.float64)
    diagonal = diagonal.flip(0) if reverse else diagonal
    # A ridge that outweighs all else mends whatever rounding made of a sum of squares.
    enough = len(diagonal) * float(diagonal.max())
    rows = torch.empty_like(hessian, dtype=torch.float64, memory_format=torch.contiguous_format)
    # By columns, as LAPACK wants it, which is the same matrix: H is symmetric.
    lower = rows.mT
    failed = torch.empty((), dtype=torch.int32, device=hessian.device)
    while True:
        _fill(rows, hessian, reverse)
        added = ridge(diagonal, share)
        lower.diagonal().copy_(diagonal + added)
        torch.linalg.cholesky_ex(lower, out=(lower, failed))
        if not failed:
            return lower, share
        if float(added.max()) > enough:
            raise ValueError("the Hessian is not positive semi-definite")
        share = _raised(share)


def _fill(rows: Tensor, hessian: Tensor, reverse: bool) -> None:
    """Copy a matrix, some rows at a time; `reverse` turns the order of rows and columns round."""
    size = len(hessian)
    for start in range(0, size, COPIED):
        stop = min(start + COPIED, size)
        if reverse:
            rows[start:stop] = hessian[size - stop : size - start].flip(0, 1)
        else:
            rows[start:stop] = hessian[start:stop]


def _raised(share: float) -> float:
    return max(10 * share, SMALLEST_DAMPING)


def sweep(
    weight: Tensor,
    factor: Tensor,
    block: int,
    round_piece: Callable[[Tensor, slice, Tensor], tuple[Grid, Affine]],
    group: int | None = None,
) -> Tensor:
    """Round column after column; those to the right make up for what each rounding changes.

    Args:
        weight: [rows, columns]; left as it is.
        factor: of the metric of errors, see `inverse_factor`.
        block: columns that are looked at together when their turn comes.
        round_piece: from all columns [columns, rows], those from the piece's block on as they are
            by then, the piece, and what an error in each column costs after later ones have made up
            for it [columns], to what the codes of the piece stand for.
        group: divides the block; a piece lies within one. None is the block itself.

    Returns:
        codes from 0 on, int16 [rows, columns].
    """
    # A column of the weight lies together: it is what is read and changed.
    columns = weight.to(torch.float32).T.clone(memory_format=torch.contiguous_format)
    codes = torch.empty_like(columns, dtype=torch.int16)
    diagonal = factor.diagonal()
    importance = diagonal.square().reciprocal()

    def replace(piece: slice) -> Tensor:
        grid, affine = round_piece(columns, piece, importance)
        within = factor[piece, piece]
        codes[piece], errors = in_order.round_columns(
            columns[piece], within, diagonal[piece], grid, affine
        )
        return errors

    in_order.sweep(columns, lambda a, b: factor[a, b], block, group or block, replace)
    return codes.T.contiguous()


def round_groups(
    weight: Tensor, factor: Tensor, group_size: int, bits: int
) -> tuple[Tensor, Tensor]:
    """Codes and scales of groups; a group's scale is searched when its turn comes.

    Args:
        weight: [rows, columns]; `group_size` divides columns.
        factor: of the metric of errors, see `inverse_factor`, [columns, columns].
        group_size: columns that share a scale.
        bits: of a code, 2 to 7.

    Returns:
        int8 codes [rows, columns] in `code_range(bits)` and float32 scales [rows, groups].

    Raises:
        ValueError: a weight is not finite, or too large for a scale.
    """
    grid, scales = even_grid(bits, group_size), []

    def round_piece(columns: Tensor, piece: slice, importance: Tensor) -> tuple[Grid, Affine]:
        if piece.start % group_size == 0:
            group = slice(piece.start, piece.start + group_size)
            values, costs = columns[group].T, importance[group]
            scale = search_group_scale(values, costs, group_size, bits, checked=False)
            scales.append(scale[:, 0])
        return grid, Affine(scales[-1])

    codes = sweep(weight, factor, group_size, round_piece)
    found = torch.stack(scales, dim=1)
    check_scales(found)
    return codes.add_(grid.levels[0]).to(torch.int8), found


def round_int8(weight: Tensor, factor: Tensor, scale: Tensor) -> Tensor:
    """8-bit codes at given scales.

    Args:
        weight: [rows, columns].
        factor: of the metric of errors, see `inverse_factor`, [columns, columns].
        scale: [rows] or [1].

    Returns:
        int8 [rows, columns].
    """
    affine = Affine(scale.to(torch.float32).expand(len(weight)).contiguous())
    grid = even_grid(8, in_order.BLOCK)
    codes = sweep(weight, factor, in_order.BLOCK, lambda *_: (grid, affine))
    return codes.add_(grid.levels[0]).to(torch.int8)


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
