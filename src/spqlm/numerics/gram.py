"""Sums of outer products, of which only one half is computed."""

import torch
from torch import Tensor

# Columns of a block: large enough for a fast matrix product, small enough to skip most of one half.
BLOCK = 288


def add_gram(total: Tensor, rows: Tensor) -> None:
    """Add Σ x xᵀ to the blocks on and above the diagonal; `complete_gram` fills in the others.

    Args:
        total: [n, n], changed in place.
        rows: one x each, [count, n], same dtype.
    """
    for start in range(0, total.shape[1], BLOCK):
        stop = start + BLOCK
        total[start:stop, start:].addmm_(rows[:, start:stop].T, rows[:, start:])


def complete_gram(total: Tensor) -> Tensor:
    """The whole symmetric matrix, [n, n], from what `add_gram` added up."""
    upper = total.triu()
    return upper + torch.triu(upper, 1).T


def complete_gram_(total: Tensor) -> Tensor:
    """`complete_gram` in place."""
    for start in range(0, len(total), BLOCK):
        stop = start + BLOCK
        total[stop:, start:stop] = total[start:stop, stop:].T
        total[start:stop, start:stop] = complete_gram(total[start:stop, start:stop])
    return total
