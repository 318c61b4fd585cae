"""One option per item, the least total loss within a byte budget."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

RELATIVE_GAP = 1e-4


def choose(
    sizes: Sequence[Sequence[int]], losses: Sequence[Sequence[float]], budget: int
) -> list[int]:
    """Solve the multiple-choice knapsack (integer programme, HiGHS).

    Args:
        sizes: bytes of every option of every item.
        losses: what each costs, same shape.
        budget: most bytes in all.

    Returns:
        the index of the chosen option for each item; its total loss is within 0.01 % of the least.

    Raises:
        ValueError: even the smallest options exceed the budget.
    """
    smallest = sum(min(options) for options in sizes)
    if smallest > budget:
        raise ValueError(f"the smallest choice takes {smallest} bytes, more than {budget}")
    if not sizes:
        return []
    flat_sizes = np.concatenate([np.asarray(options, dtype=float) for options in sizes])
    flat_losses = np.concatenate([np.asarray(options, dtype=float) for options in losses])
    owner = np.repeat(np.arange(len(sizes)), [len(options) for options in sizes])
    count = len(flat_sizes)
    one_each = csr_array((np.ones(count), (owner, np.arange(count))), shape=(len(sizes), count))
    scale = max(float(np.abs(flat_losses).max()), 1e-30)
    solved = milp(
        flat_losses / scale,
        integrality=np.ones(count),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(flat_sizes[None, :] / budget, -np.inf, 1),
        ],
        options={"mip_rel_gap": RELATIVE_GAP},
    )
    taken = solved.x > 0.5
    starts = np.concatenate([[0], np.cumsum([len(options) for options in sizes])])
    return [int(np.flatnonzero(taken[start:stop])[0]) for start, stop in pairwise(starts)]
