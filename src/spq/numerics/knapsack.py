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
        the index of the chosen option for each item; its total loss is within 0.01 % of the least,
        or a millionth of the largest single loss.

    Raises:
        ValueError: even the smallest options exceed the budget.
    """
    smallest = sum(min(options) for options in sizes)
    if smallest > budget:
        raise ValueError(f"the smallest choice takes {smallest} bytes, more than {budget}")
    if not sizes:
        return []
    # Over the smallest: the solver's tolerance is a share of the budget.
    spare = max(budget - smallest, 1)
    extra = [[size - min(options) for size in options] for options in sizes]
    flat_sizes = np.concatenate([np.asarray(options, dtype=float) for options in extra])
    flat_losses = np.concatenate([np.asarray(options, dtype=float) for options in losses])
    owner = np.repeat(np.arange(len(sizes)), [len(options) for options in sizes])
    count = len(flat_sizes)
    one_each = csr_array((np.ones(count), (owner, np.arange(count))), shape=(len(sizes), count))
    scale = max(float(np.abs(flat_losses).max()), 1e-30)
    starts = np.concatenate([[0], np.cumsum([len(options) for options in sizes])])
    allowed = budget - smallest
    while allowed >= 0:
        solved = milp(
            flat_losses / scale,
            integrality=np.ones(count),
            bounds=Bounds(0, 1),
            constraints=[
                LinearConstraint(one_each, 1, 1),
                LinearConstraint(flat_sizes[None, :] / spare, -np.inf, allowed / spare),
            ],
            options={"mip_rel_gap": RELATIVE_GAP},
        )
        taken = [int(np.argmax(solved.x[start:stop])) for start, stop in pairwise(starts)]
        over = sum(options[pick] for options, pick in zip(sizes, taken, strict=True)) - budget
        if over <= 0:
            return taken
        # By no more than the tolerance: ask for a little less.
        allowed -= over
    return [min(range(len(options)), key=options.__getitem__) for options in sizes]
