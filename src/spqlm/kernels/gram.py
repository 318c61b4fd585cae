"""Sums of weighted outer products, of what enters a layer: half of the work of fitting weights."""

import torch
from torch import Tensor

from spqlm import native
from spqlm.numerics import gram


def add_gram(total: Tensor, x: Tensor, weights: Tensor) -> None:
    """Add Σ w x xᵀ to the entries on and above the diagonal; see `gram.complete_gram`.

    bfloat16 inputs are multiplied as such where the processor can: √w x is rounded to bfloat16,
    sums are in float32. Everything else is in float32.

    Args:
        total: float32 [n, n], changed in place.
        x: [count, n].
        weights: w ≥ 0, float32 [count].
    """
    factors = weights.sqrt()
    found = native.library()
    fits = x.dtype == torch.bfloat16 and native.addressable(total, x, factors)
    if found is None or not fits or not native.add_gram(found, total, x, factors):
        gram.add_gram(total, x.float() * factors[:, None])
