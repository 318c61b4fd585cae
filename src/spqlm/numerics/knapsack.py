"""One way to shape and store every part of a model, the least total loss within a byte budget."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import coo_array

RELATIVE_GAP = 1e-4

Priced = tuple[int, float]


@dataclass(frozen=True)
class Alternative:
    """One shape that a unit may take.

    Attributes:
        loss: what the shape itself costs, in nats per token.
        parts: for each weight of the unit in that shape, its options as (bytes, nats per token).
    """

    loss: float
    parts: Sequence[Sequence[Priced]]

    @property
    def smallest(self) -> int:
        """Fewest bytes that the parts can take."""
        return sum(min(size for size, _ in options) for options in self.parts)


@dataclass(frozen=True)
class Choice:
    """What was chosen for a unit.

    Attributes:
        alternative: index among the unit's alternatives.
        options: index of the option of each part.
    """

    alternative: int
    options: list[int]


@dataclass
class _Programme:
    """min costs · x over binary x: one alternative per unit, one option per part of it."""

    costs: NDArray[np.float64]
    sizes: NDArray[np.float64]
    equations: coo_array
    right: NDArray[np.float64]
    # Position of each alternative's variable; its parts' options follow in order.
    starts: list[list[int]]


def smallest(units: Sequence[Sequence[Alternative]]) -> int:
    """Fewest bytes that the units can take."""
    return sum(min(alternative.smallest for alternative in unit) for unit in units)


def choose(units: Sequence[Sequence[Alternative]], budget: int) -> list[Choice]:
    """Solve the nested multiple-choice knapsack (integer programme, HiGHS).

    Args:
        units: the alternatives of each.
        budget: most bytes in all.

    Returns:
        a choice for each unit; their total loss is within 0.01 % of the least, or a millionth of
        the largest single loss.

    Raises:
        ValueError: even the smallest choice exceeds the budget.
    """
    least = smallest(units)
    if least > budget:
        raise ValueError(f"the smallest choice takes {least} bytes, more than {budget}")
    if not units:
        return []
    programme = _programme(units)
    scale = max(float(np.abs(programme.costs).max()), 1e-30)
    # Bytes over the smallest choice: the solver's tolerance is a share of the right-hand side.
    spare = max(budget - least, 1)
    allowed = budget - least
    while allowed >= 0:
        solved = milp(
            programme.costs / scale,
            integrality=np.ones(len(programme.costs)),
            bounds=Bounds(0, 1),
            constraints=[
                LinearConstraint(programme.equations, programme.right, programme.right),
                LinearConstraint(programme.sizes[None, :] / spare, -np.inf, allowed / spare),
            ],
            options={"mip_rel_gap": RELATIVE_GAP},
        )
        taken = _read(units, programme, solved.x)
        over = _bytes(units, taken) - budget
        if over <= 0:
            return taken
        # By no more than the tolerance: ask for a little less.
        allowed -= over
    return [_smallest_choice(unit) for unit in units]


def worth_of_a_byte(units: Sequence[Sequence[Alternative]], budget: int) -> float:
    """Nats per token that one more byte of budget would save: the dual of the relaxed programme.

    An alternative that costs more than this for every byte it saves is in no best solution of the
    relaxed programme.

    Returns:
        nats per token and byte; infinity where the budget cannot be met.
    """
    least = smallest(units)
    if least > budget:
        return float("inf")
    if not units:
        return 0.0
    programme = _programme(units)
    scale = max(float(np.abs(programme.costs).max()), 1e-30)
    spare = max(budget - least, 1)
    solved = linprog(
        programme.costs / scale,
        A_ub=programme.sizes[None, :] / spare,
        b_ub=[(budget - least) / spare],
        A_eq=programme.equations,
        b_eq=programme.right,
        bounds=(0, 1),
    )
    return float(-solved.ineqlin.marginals[0]) * scale / spare


def _programme(units: Sequence[Sequence[Alternative]]) -> _Programme:
    costs: list[float] = []
    sizes: list[float] = []
    entries: list[tuple[int, int, float]] = []
    right: list[float] = []
    starts: list[list[int]] = []
    for unit in units:
        least = min(alternative.smallest for alternative in unit)
        one_of_unit = len(right)
        right.append(1.0)
        starts.append([])
        for alternative in unit:
            shape = len(costs)
            starts[-1].append(shape)
            costs.append(alternative.loss)
            sizes.append(alternative.smallest - least)
            entries.append((one_of_unit, shape, 1.0))
            for options in alternative.parts:
                fewest = min(size for size, _ in options)
                entries.append((len(right), shape, -1.0))
                for size, loss in options:
                    entries.append((len(right), len(costs), 1.0))
                    costs.append(loss)
                    sizes.append(size - fewest)
                right.append(0.0)
    rows, columns, values = zip(*entries, strict=True)
    equations = coo_array((values, (rows, columns)), shape=(len(right), len(costs)))
    return _Programme(np.array(costs), np.array(sizes), equations, np.array(right), starts)


def _read(
    units: Sequence[Sequence[Alternative]], programme: _Programme, solution: NDArray[np.float64]
) -> list[Choice]:
    taken = []
    for unit, starts in zip(units, programme.starts, strict=True):
        index = int(np.argmax(solution[starts]))
        position = starts[index] + 1
        options = []
        for part in unit[index].parts:
            options.append(int(np.argmax(solution[position : position + len(part)])))
            position += len(part)
        taken.append(Choice(index, options))
    return taken


def _smallest_choice(unit: Sequence[Alternative]) -> Choice:
    index = min(range(len(unit)), key=lambda i: unit[i].smallest)
    parts = unit[index].parts
    return Choice(index, [min(range(len(part)), key=lambda i: part[i][0]) for part in parts])


def _bytes(units: Sequence[Sequence[Alternative]], taken: Sequence[Choice]) -> int:
    return sum(
        part[pick][0]
        for unit, choice in zip(units, taken, strict=True)
        for part, pick in zip(unit[choice.alternative].parts, choice.options, strict=True)
    )
