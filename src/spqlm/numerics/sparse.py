"""Unstructured and n:m pruning: SparseGPT (arXiv 2301.00774) and Wanda (arXiv 2306.11695)."""

import torch
from torch import Tensor

from spqlm.numerics.gptq import inverse_factor

BLOCK = 128
LARGEST = torch.finfo(torch.float32).max


def keep_largest(scores: Tensor, sparsity: float, by_row: bool) -> Tensor:
    """Which entries stay when the lowest-scored share of them goes.

    Args:
        scores: [rows, columns].
        sparsity: share that goes, in [0, 1); rounded down to whole entries.
        by_row: the same number in every row, else wherever they are lowest.

    Returns:
        bool [rows, columns].
    """
    flat = scores if by_row else scores.reshape(1, -1)
    count = int(flat.shape[1] * sparsity)
    keep = torch.ones_like(flat, dtype=torch.bool)
    keep.scatter_(1, flat.argsort(dim=1, stable=True)[:, :count], False)
    return keep.reshape(scores.shape)


def keep_of_each(scores: Tensor, pruned: int, group: int) -> Tensor:
    """Which entries stay when the `pruned` lowest-scored of every `group` in a row go.

    Args:
        scores: [rows, columns]; `group` divides columns.
        pruned: n of n:m, less than `group`.
        group: m of n:m.

    Returns:
        bool [rows, columns].

    Raises:
        ValueError: `group` does not divide the columns.
    """
    if scores.shape[1] % group:
        raise ValueError(f"groups of {group} do not divide {scores.shape[1]} columns")
    grouped = scores.unflatten(1, (-1, group))
    keep = torch.ones_like(grouped, dtype=torch.bool)
    keep.scatter_(2, grouped.argsort(dim=2, stable=True)[..., :pruned], False)
    return keep.flatten(1)


def wanda(
    weight: Tensor, hessian: Tensor, sparsity: float, group: tuple[int, int] | None = None
) -> Tensor:
    """Zero the weights of least |w_ij| · ‖x_j‖, row by row (Wanda, eq. 1); nothing is refitted.

    Args:
        weight: [rows, columns].
        hessian: E[x xᵀ] [columns, columns], of which the diagonal is read.
        sparsity: share of each row that goes.
        group: (n, m) prunes n of every m instead.

    Returns:
        float32 [rows, columns].
    """
    weight = weight.to(torch.float32)
    scores = weight.abs() * hessian.diagonal().clamp_min(0).sqrt()
    keep = keep_largest(scores, sparsity, True) if group is None else keep_of_each(scores, *group)
    return weight * keep


def sparsegpt(
    weight: Tensor,
    hessian: Tensor,
    sparsity: float,
    group: tuple[int, int] | None = None,
    damping: float = 0.01,
    largest: float = LARGEST,
) -> Tensor:
    """Zero weights and let those to their right make up for it (SparseGPT, algorithm 1).

    A weight's score is w² / [H⁻¹]_jj, where H⁻¹ is that of its column and those to its right.
    Blocks of 128 columns are decided at once, groups when their turn comes. A row that cannot be
    stored when it has made up for what it lost does not: it is as it was, with its zeros.

    Args:
        weight: [rows, columns].
        hessian: E[x xᵀ] [columns, columns].
        sparsity: share of every block that goes, from whichever rows.
        group: (n, m) prunes n of every m of a row instead.
        damping: see `spqlm.numerics.gptq.damped`.
        largest: magnitude that can be stored.

    Returns:
        float32 [rows, columns].

    Raises:
        ValueError: the Hessian is not one, or the group does not divide the columns.
    """
    dense, kept = weight, torch.ones_like(weight, dtype=torch.bool)
    weight = dense.to(torch.float32, copy=True)
    if group is not None and weight.shape[1] % group[1]:
        raise ValueError(f"groups of {group[1]} do not divide {weight.shape[1]} columns")
    factor, _ = inverse_factor(hessian, damping)
    cost = factor.diagonal().square().reciprocal()
    size = BLOCK if group is None else BLOCK // group[1] * group[1]
    for start in range(0, weight.shape[1], size):
        stop = min(start + size, weight.shape[1])
        block = weight[:, start:stop]
        keep = torch.ones_like(block, dtype=torch.bool)
        if group is None:
            keep = keep_largest(block.square() * cost[start:stop], sparsity, False)
        errors = torch.zeros_like(block)
        for column in range(start, stop):
            at = column - start
            if group is not None and at % group[1] == 0:
                ahead = slice(at, at + group[1])
                scores = block[:, ahead].square() * cost[column : column + group[1]]
                keep[:, ahead] = keep_of_each(scores, *group)
            errors[:, at] = block[:, at] * ~keep[:, at] / factor[column, column]
            # Left of the diagonal the factor is zero, so what was decided stays.
            block.addr_(errors[:, at], factor[column, start:stop], alpha=-1)
            block[:, at].mul_(keep[:, at])
        weight[:, stop:].addmm_(errors, factor[start:stop, stop:], alpha=-1)
        kept[:, start:stop] = keep
    # Of NaN, too.
    beyond = ~(weight.abs().amax(1) <= largest)
    weight[beyond] = dense[beyond].to(torch.float32) * kept[beyond]
    return weight


def packed_bytes(nonzeros: int, entries: int, value_bytes: int, pattern: str) -> int:
    """Bytes of a sparse matrix in the plainest packed form.

    Args:
        nonzeros: values stored.
        entries: of the whole matrix.
        value_bytes: of one value.
        pattern: `unstructured`: a bit for every entry; `2:4`: two bits for every value.
    """
    index_bits = entries if pattern == "unstructured" else 2 * nonzeros
    return nonzeros * value_bytes + -(-index_bits // 8)
