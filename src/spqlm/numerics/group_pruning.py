"""Which groups of a weight to drop, and how the rest makes up for them (GQSA, arXiv 2412.17560)."""

from typing import Literal

import torch
from torch import Tensor

from spqlm.numerics.blocks import Grid, even_grid
from spqlm.numerics.gptq import DAMPING, damped, inverse, sweep
from spqlm.numerics.in_order import Affine
from spqlm.numerics.integer import (
    absmax_scale,
    check_scales,
    code_range,
    round_scale,
    search_group_scale,
)

Saliency = Literal["joint", "hessian", "first_order"]
Pattern = Literal["row_balanced", "free"]

# Of pruning and refitting in turn; eight gain under one per cent on four.
ROUNDS = 4
# Of conjugate gradients; thirty gain under one per cent on ten.
ITERATIONS = 10
SMALLEST = 1e-30


def group_saliency(
    weight: Tensor,
    hessian: Tensor,
    output: Tensor,
    group_size: int,
    kind: Saliency,
    damping: float = DAMPING,
) -> Tensor:
    """What dropping each group costs.

    `joint` is the exact cost of dropping the group's weights w together once all other weights of
    the row have made up for it, ½ o wᵀ ([H⁻¹]_gg)⁻¹ w (Optimal Brain Surgeon for a block), in nats
    per token. `hessian` is the mean of w² / [H⁻¹]_jj² over the group, as published. `first_order`
    is ½ o Σ w² H_jj, the square of the gradient's part, with nothing making up for it.

    Args:
        weight: [rows, columns]; `group_size` divides columns.
        hessian: metric of errors [columns, columns].
        output: weight of each row's errors, [rows].
        group_size: inputs in a group.
        kind: see above.
        damping: see `gptq.damped`.

    Returns:
        float32 [rows, groups], >= 0.
    """
    grouped = weight.to(torch.float32).unflatten(1, (-1, group_size))
    rows = output[:, None].to(torch.float32)
    if kind == "first_order":
        diagonal = hessian.diagonal().clamp_min(0).reshape(-1, group_size)
        return 0.5 * rows * (grouped.square() * diagonal).sum(2)
    inverted = inverse(hessian, damping)
    if kind == "hessian":
        diagonal = inverted.diagonal().square().reciprocal().float().reshape(-1, group_size)
        return rows * (grouped.square() * diagonal).mean(2)
    count = grouped.shape[1]
    blocks = inverted.reshape(count, group_size, count, group_size).diagonal(dim1=0, dim2=2)
    # Not by LU, which is wrong for a batch in several threads of MKL (pytorch/pytorch#141358).
    metric = torch.cholesky_inverse(torch.linalg.cholesky(blocks.permute(2, 0, 1))).float()
    return 0.5 * rows * torch.einsum("rgi,gij,rgj->rg", grouped, metric, grouped).clamp_min(0)


def choose_groups(saliency: Tensor, sparsity: float, pattern: Pattern) -> Tensor:
    """Which groups stay when the least salient share of them goes.

    Args:
        saliency: [rows, groups].
        sparsity: share that goes, in [0, 1); rounded down to whole groups.
        pattern: `row_balanced` drops the same number from every row, `free` from wherever they are
            least salient, but leaves every row at least one.

    Returns:
        bool [rows, groups], at least one in each row.
    """
    rows, groups = saliency.shape
    keep = torch.ones_like(saliency, dtype=torch.bool)
    if pattern == "row_balanced":
        dropped = saliency.argsort(dim=1, stable=True)[:, : int(groups * sparsity)]
        return keep.scatter_(1, dropped, False)
    spared = saliency.scatter(1, saliency.argmax(1, keepdim=True), torch.inf)
    count = min(int(rows * groups * sparsity), rows * (groups - 1))
    dropped = spared.flatten().argsort(stable=True)[:count]
    return keep.flatten().scatter_(0, dropped, False).reshape(rows, groups)


def _power_of_two(magnitude: Tensor) -> Tensor:
    """The largest one within a magnitude: dividing by it changes no digit."""
    return magnitude.clamp_min(torch.finfo(torch.float32).tiny).log2().floor().exp2()


def refit_kept(
    weight: Tensor, metric: Tensor, keep: Tensor, start: Tensor, iterations: int = ITERATIONS
) -> Tensor:
    """Least squares for what is kept: argmin tr (X - W) M (X - W)ᵀ over X that is 0 where dropped.

    Conjugate gradients with a diagonal preconditioner, all rows at once: each row has its own mask,
    so its own system, but one matrix product serves them all. Few iterations do, since damping
    keeps the systems well conditioned.

    Args:
        weight: W [rows, columns].
        metric: M [columns, columns], positive definite.
        keep: bool [rows, groups].
        start: X to begin with, [rows, columns].
        iterations: matrix products.

    Returns:
        float32 [rows, columns], 0 where dropped.
    """
    full = keep.repeat_interleave(weight.shape[1] // keep.shape[1], dim=1)
    # So that no square leaves float32's range; the solution is the same in any unit.
    unit = _power_of_two(weight.abs().amax(1, keepdim=True))
    weight, metric = weight / unit, metric / _power_of_two(metric.diagonal().max())
    scale = metric.diagonal().reciprocal()
    found = start / unit * full
    residual = ((weight - found) @ metric) * full
    direction = residual * scale
    size = (residual * direction).sum(1, keepdim=True)
    for _ in range(iterations):
        image = (direction @ metric) * full
        step = size / (direction * image).sum(1, keepdim=True).clamp_min(SMALLEST)
        found = found + step * direction
        residual = residual - step * image
        preconditioned = residual * scale
        size, last = (residual * preconditioned).sum(1, keepdim=True), size
        direction = preconditioned + size / last.clamp_min(SMALLEST) * direction
    found = found * unit
    # Columns so far apart that float32 does not solve for them stay as they were.
    return found.where(torch.isfinite(found).all(1, keepdim=True), start * full)


def prune_groups(
    weight: Tensor,
    hessian: Tensor,
    output: Tensor,
    group_size: int,
    sparsity: float,
    *,
    kind: Saliency = "first_order",
    pattern: Pattern = "free",
    rounds: int = ROUNDS,
    damping: float = DAMPING,
) -> tuple[Tensor, Tensor]:
    """Drop groups in rounds; after each, what is left is refitted and judged anew.

    Args:
        weight: [rows, columns]; `group_size` divides columns.
        hessian: metric of errors [columns, columns].
        output: weight of each row's errors, [rows].
        group_size: inputs in a group.
        sparsity: share of the groups that goes, in [0, 1).
        kind: see `group_saliency`.
        pattern: see `choose_groups`.
        rounds: in which sparsity grows by equal parts.
        damping: see `gptq.damped`.

    Returns:
        bool [rows, groups], and the refitted weight, float32 [rows, columns].
    """
    weight = weight.to(torch.float32)
    metric = damped(hessian, damping)
    current = weight
    keep = torch.ones(len(weight), weight.shape[1] // group_size, dtype=torch.bool)
    keep = keep.to(weight.device)
    for done in range(1, rounds + 1):
        saliency = group_saliency(current, hessian, output, group_size, kind, damping)
        keep = choose_groups(saliency.where(keep, 0), sparsity * done / rounds, pattern)
        current = refit_kept(weight, metric, keep, current)
    return keep, current


def round_kept(
    weight: Tensor, factor: Tensor, keep: Tensor, bits: int, *, zero_point: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Round the kept groups; columns to the right make up for roundings and for dropped groups.

    SparseGPT's and GPTQ's pass in one (arXiv 2301.00774, section 3.3), with the groups known
    beforehand.

    Args:
        weight: [rows, columns].
        factor: of the metric of errors, see `gptq.inverse_factor`, [columns, columns].
        keep: bool [rows, groups]; groups divides columns.
        bits: 4 or 8.
        zero_point: whether groups get an offset too.

    Returns:
        int8 codes [rows, columns], float32 scales [rows, groups], and zeros like them or None.
    """
    group_size = weight.shape[1] // keep.shape[1]
    grid, scales, zeros = even_grid(bits, group_size), [], []

    def round_piece(columns: Tensor, piece: slice, importance: Tensor) -> tuple[Grid, Affine]:
        if piece.start % group_size == 0:
            group = slice(piece.start, piece.start + group_size)
            found = group_grid(columns[group].T, importance[group], bits, zero_point)
            scales.append(found[0])
            zeros.append(found[1])
        kept = keep[:, piece.start // group_size].expand(piece.stop - piece.start, -1)
        return grid, Affine(scales[-1][:, 0], zeros[-1][:, 0], kept)

    codes = sweep(weight, factor, group_size, round_piece).add_(grid.levels[0]).to(torch.int8)
    found = torch.cat(scales, 1)
    check_scales(found)
    return codes, found, torch.cat(zeros, 1) if zero_point else None


def group_grid(
    values: Tensor, importance: Tensor | None, bits: int, zero_point: bool
) -> tuple[Tensor, Tensor]:
    """Scale and zero of one group per row, for codes of `nearest`.

    Args:
        values: [rows, group_size].
        importance: of errors in each column, [group_size]; None for alike.
        bits: 4 or 8.
        zero_point: whether the grid may be moved; else zeros are 0.

    Returns:
        float32 [rows, 1] each, exact in float16 and bfloat16; of values that have none, one that
        `check_scales` refuses.
    """
    least, most = code_range(bits)
    if zero_point:
        low, high = values.aminmax(dim=1, keepdim=True)
        scale = round_scale(((high - low) / (most - least)).clamp_min(2.0**-20))
        return scale, round_scale(low - scale * least)
    if least == -most:
        scale = absmax_scale(values, per_channel=True, bits=bits)[:, None]
    else:
        scale = search_group_scale(values, importance, values.shape[1], bits, checked=False)
    return scale, torch.zeros_like(scale)


def nearest(values: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """Nearest codes, int8 [rows, columns]; scale and zero are [rows, groups]."""
    shifted = values.float().unflatten(1, (scale.shape[1], -1)) - zero[..., None]
    codes = (shifted / scale[..., None]).round_().clamp_(*code_range(bits))
    return codes.flatten(1).to(torch.int8)
