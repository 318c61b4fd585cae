"""One way to shape and store every part of a model: the least total loss within several limits."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import coo_array, hstack

from spqlm.numerics.programme import Choice, Programme, Units
from spqlm.numerics.quiet import unheard

RELATIVE_GAP = 1e-4
# Of a budget: what sums of floats differ by. Of a terabyte it is a byte.
ROUNDING = 1e-12
NO_COMMON_OPTION = "the parts of a tie have no kind of option in common"


@dataclass(frozen=True)
class Worth:
    """Prices under which the best relaxed choice is the cheapest for each unit by itself.

    Attributes:
        costs: nats per token that one more of each limited thing would save. Where no choice keeps
            within the limits, how much it matters for coming near them.
        within: whether a relaxed choice keeps within the limits; if not, losses count nothing.
        slack: nats per token by which an option may be dearer than the cheapest one and still be in
            the best whole choice.
    """

    costs: tuple[float, ...]
    within: bool = True
    slack: float = 0.0

    def paid(self, loss: float, costs: Sequence[float]) -> float:
        """Nats per token with all costs paid at these prices."""
        paid = sum(worth * cost for worth, cost in zip(self.costs, costs, strict=False))
        return loss + paid if self.within else paid


def smallest(units: Units, resource: int = 0) -> float:
    """The least that the units can cost of one limited thing, whatever the others.

    Raises:
        ValueError: the parts of a tie have no kind of option in common.
    """
    if not units:
        return 0
    return used(units, _smallest_choice(units, resource), resource)


def used(units: Units, taken: Sequence[Choice], resource: int = 0) -> float:
    """What a choice costs of one limited thing."""
    total: float = 0
    for unit, choice in zip(units, taken, strict=True):
        alternative = unit[choice.alternative]
        total += alternative.costs[resource] if alternative.costs else 0
        for part, pick in zip(alternative.parts, choice.options, strict=True):
            total += part[pick][resource]
    return total


def choose(units: Units, *budgets: float) -> list[Choice]:
    """Solve the nested multiple-choice knapsack of several limits (integer programme, HiGHS).

    Args:
        units: the alternatives of each.
        budgets: the most that they may cost of each limited thing.

    Returns:
        a choice for each unit; their total loss is within 0.01 % of the least, or a millionth of
        the largest single loss.

    Raises:
        ValueError: no choice keeps within the budgets, or as for `smallest`.
    """
    for resource, budget in enumerate(budgets):
        least = smallest(units, resource)
        if least > budget:
            raise ValueError(f"the smallest choice takes {least}, more than {budget}")
    if not units:
        return []
    programme = Programme.of(units, len(budgets))
    scale = max(float(np.abs(programme.losses).max()), 1e-30)
    wanted = np.array(budgets, dtype=np.float64)
    allowed = wanted - _untied(units, len(budgets))
    while True:
        found = _solved(programme, programme.losses / scale, allowed, RELATIVE_GAP)
        if found is None:
            break
        taken = programme.read(units, found)
        over = np.array([used(units, taken, k) for k in range(len(budgets))]) - wanted
        if (over <= ROUNDING * np.abs(wanted)).all():
            return taken
        # By no more than the solver's tolerance: ask for a little less.
        allowed = allowed - over.clip(0)
    if len(budgets) > 1:
        raise ValueError("no choice keeps within all budgets at once")
    return _smallest_choice(units, 0)


def total_loss(units: Units, taken: Sequence[Choice]) -> float:
    """What a choice loses."""
    return sum(
        unit[choice.alternative].loss
        + sum(
            part[pick][-1]
            for part, pick in zip(unit[choice.alternative].parts, choice.options, strict=True)
        )
        for unit, choice in zip(units, taken, strict=True)
    )


def worth(units: Units, *budgets: float) -> Worth:
    """What one more of each limited thing would save: the duals of the relaxed programme.

    An option that costs more than this for all that it saves is in no best solution of the relaxed
    programme.
    """
    least = [smallest(units, resource) for resource in range(len(budgets))]
    short = [fewest > budget for fewest, budget in zip(least, budgets, strict=True)]
    if any(short):
        shares = [float(out) / max(abs(f), 1e-30) for out, f in zip(short, least, strict=True)]
        return Worth(tuple(shares), within=False)
    if not units:
        return Worth((0.0,) * len(budgets))
    programme = Programme.of(units, len(budgets))
    allowed = np.array(budgets, dtype=np.float64) - _untied(units, len(budgets))
    scale, spare = max(float(np.abs(programme.losses).max()), 1e-30), _spare(programme, allowed)
    solved = linprog(
        programme.losses / scale,
        A_ub=programme.costs / spare[:, None],
        b_ub=allowed / spare,
        A_eq=programme.equations,
        b_eq=programme.right,
        bounds=(0, 1),
    )
    if solved.status == 0:
        return Worth(tuple((-solved.ineqlin.marginals * scale / spare).tolist()))
    objective, limits, equations = _exceeding(programme, spare)
    solved = linprog(
        objective,
        A_ub=limits,
        b_ub=allowed / spare,
        A_eq=equations,
        b_eq=programme.right,
        bounds=[*[(0, 1)] * len(programme.losses), (0, None)],
    )
    return Worth(tuple((-solved.ineqlin.marginals / spare).tolist()), within=False)


@unheard()
def nearest(units: Units, budgets: Sequence[float], scales: Sequence[float]) -> list[float]:
    """What the units cost where no budget is exceeded by more of its scale than need be.

    Args:
        units: the alternatives of each.
        budgets: that no choice need keep within.
        scales: above zero, of each.

    Raises:
        ValueError: as for `smallest`.
    """
    programme = Programme.of(units, len(budgets))
    scaled = np.array(scales, dtype=np.float64)
    allowed = np.array(budgets, dtype=np.float64) - _untied(units, len(budgets))
    objective, limits, equations = _exceeding(programme, scaled)
    count = len(programme.losses)
    solved = milp(
        objective,
        integrality=np.append(np.ones(count), 0),
        bounds=Bounds(0, np.append(np.ones(count), np.inf)),
        constraints=[
            LinearConstraint(equations, programme.right, programme.right),
            LinearConstraint(limits, -np.inf, allowed / scaled),
        ],
        options={"mip_rel_gap": RELATIVE_GAP},
    )
    if solved.x is None:
        raise ValueError(NO_COMMON_OPTION)
    taken = programme.read(units, solved.x[:-1])
    return [used(units, taken, resource) for resource in range(len(budgets))]


def _exceeding(
    programme: Programme, scales: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], coo_array]:
    """The programme with one more variable, by how much of its scale a budget may be exceeded.

    Returns:
        the objective, which is that; rows of the limits in units of the scales; and the equations.
    """
    count = len(programme.losses)
    limits = np.hstack([programme.costs / scales[:, None], -np.ones((len(scales), 1))])
    nothing = coo_array((len(programme.right), 1), dtype=np.float64)
    return np.append(np.zeros(count), 1.0), limits, hstack([programme.equations, nothing])


@unheard()
def _solved(
    programme: Programme,
    objective: NDArray[np.float64],
    allowed: NDArray[np.float64],
    gap: float,
) -> NDArray[np.float64] | None:
    """Values of the variables; None where no choice keeps within what is allowed."""
    # The solver's tolerance is a share of the right-hand side.
    spare = _spare(programme, allowed)
    limits = programme.costs[: len(allowed)] / spare[:, None]
    solved = milp(
        objective,
        integrality=np.ones(len(objective)),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(programme.equations, programme.right, programme.right),
            *([LinearConstraint(limits, -np.inf, allowed / spare)] if len(allowed) else []),
        ],
        options={"mip_rel_gap": gap},
    )
    found: NDArray[np.float64] | None = solved.x
    return found


def _spare(programme: Programme, allowed: NDArray[np.float64]) -> NDArray[np.float64]:
    """What limits are scaled by: what is allowed, or where that is nothing, what options cost."""
    largest = programme.costs[: len(allowed)].max(1, initial=0.0)
    scaled = np.where(allowed > 0, allowed, largest)
    return np.where(scaled > 0, scaled, 1.0)


def _untied(units: Units, limits: int) -> NDArray[np.float64]:
    """The least of each limited thing without ties, which a programme's costs count from."""
    return np.array(
        [sum(min(a.least(k) for a in unit) for unit in units) for k in range(limits)],
        dtype=np.float64,
    )


def _smallest_choice(units: Units, resource: int) -> list[Choice]:
    if any(alternative.tied for unit in units for alternative in unit):
        programme = Programme.of(units, resource + 1)
        costs = programme.costs[resource]
        found = _solved(programme, costs / max(float(costs.max()), 1e-30), np.empty(0), 0.0)
        if found is None:
            raise ValueError(NO_COMMON_OPTION)
        return programme.read(units, found)
    taken = []
    for unit in units:
        index = min(range(len(unit)), key=lambda i: unit[i].least(resource))
        parts = unit[index].parts
        picks = [min(range(len(part)), key=lambda i: part[i][resource]) for part in parts]
        taken.append(Choice(index, picks))
    return taken
