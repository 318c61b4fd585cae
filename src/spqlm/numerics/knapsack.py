"""One way to shape and store every part of a model, the least total loss within a byte budget."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import coo_array

RELATIVE_GAP = 1e-4

Priced = tuple[int, float]


@dataclass(frozen=True)
class Tie:
    """That a part takes an option of the same kind as every other part of the tie.

    Attributes:
        name: of the tie.
        kinds: of the part's options, in their order.
    """

    name: str
    kinds: Sequence[Hashable]


@dataclass(frozen=True)
class Alternative:
    """One shape that a unit may take.

    Attributes:
        loss: what the shape itself costs, in nats per token.
        parts: for each weight of the unit in that shape, its options as (bytes, nats per token).
        ties: for each of the parts, its tie or None; empty where there are none. A part has the
            same tie in every shape of its unit.
    """

    loss: float
    parts: Sequence[Sequence[Priced]]
    ties: Sequence[Tie | None] = ()

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
    """min costs · x over binary x: one alternative per unit, one option per part of it.

    A tie has one more variable for each kind: whether it is the one that its parts take.
    """

    costs: NDArray[np.float64]
    sizes: NDArray[np.float64]
    equations: coo_array
    right: NDArray[np.float64]
    # Position of each alternative's variable; its parts' options follow in order.
    starts: list[list[int]]


def smallest(units: Sequence[Sequence[Alternative]]) -> int:
    """Fewest bytes that the units can take.

    Raises:
        ValueError: the parts of a tie have no kind of option in common.
    """
    return _bytes(units, _smallest_choice(units))


def choose(units: Sequence[Sequence[Alternative]], budget: int) -> list[Choice]:
    """Solve the nested multiple-choice knapsack (integer programme, HiGHS).

    Args:
        units: the alternatives of each.
        budget: most bytes in all.

    Returns:
        a choice for each unit; their total loss is within 0.01 % of the least, or a millionth of
        the largest single loss.

    Raises:
        ValueError: even the smallest choice exceeds the budget, or as for `smallest`.
    """
    least = smallest(units)
    if least > budget:
        raise ValueError(f"the smallest choice takes {least} bytes, more than {budget}")
    if not units:
        return []
    programme = _programme(units)
    scale = max(float(np.abs(programme.costs).max()), 1e-30)
    # Bytes over the smallest choice: the solver's tolerance is a share of the right-hand side.
    allowed = budget - _untied(units)
    spare = max(allowed, 1)
    while allowed >= least - _untied(units):
        limit = LinearConstraint(programme.sizes[None, :] / spare, -np.inf, allowed / spare)
        taken = _read(
            units, programme, _solved(programme, programme.costs / scale, [limit], RELATIVE_GAP)
        )
        over = _bytes(units, taken) - budget
        if over <= 0:
            return taken
        # By no more than the tolerance: ask for a little less.
        allowed -= over
    return _smallest_choice(units)


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
    allowed = budget - _untied(units)
    spare = max(allowed, 1)
    solved = linprog(
        programme.costs / scale,
        A_ub=programme.sizes[None, :] / spare,
        b_ub=[allowed / spare],
        A_eq=programme.equations,
        b_eq=programme.right,
        bounds=(0, 1),
    )
    return float(-solved.ineqlin.marginals[0]) * scale / spare


def _solved(
    programme: _Programme, costs: NDArray[np.float64], limits: list[LinearConstraint], gap: float
) -> NDArray[np.float64]:
    solved = milp(
        costs,
        integrality=np.ones(len(costs)),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(programme.equations, programme.right, programme.right),
            *limits,
        ],
        options={"mip_rel_gap": gap},
    )
    if solved.x is None:
        raise ValueError("the parts of a tie have no kind of option in common")
    found: NDArray[np.float64] = solved.x
    return found


def _programme(units: Sequence[Sequence[Alternative]]) -> _Programme:
    costs: list[float] = []
    sizes: list[float] = []
    entries: list[tuple[int, int, float]] = []
    right: list[float] = []
    starts: list[list[int]] = []
    ties = _Ties()
    for number, unit in enumerate(units):
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
            for place, options in enumerate(alternative.parts):
                if alternative.ties:
                    ties.add((number, place), alternative.ties[place], len(costs))
                fewest = min(size for size, _ in options)
                entries.append((len(right), shape, -1.0))
                for size, loss in options:
                    entries.append((len(right), len(costs), 1.0))
                    costs.append(loss)
                    sizes.append(size - fewest)
                right.append(0.0)
    for rows_of_kind in ties.rows():
        for variables in rows_of_kind:
            entries += [(len(right), variable, 1.0) for variable in variables]
            entries.append((len(right), len(costs), -1.0))
            right.append(0.0)
        costs.append(0.0)
        sizes.append(0.0)
    rows, columns, values = zip(*entries, strict=True)
    equations = coo_array((values, (rows, columns)), shape=(len(right), len(costs)))
    return _Programme(np.array(costs), np.array(sizes), equations, np.array(right), starts)


class _Ties:
    """Variables of options by tie, kind and part; a part is a unit's number and a place in it."""

    def __init__(self) -> None:
        self._parts: dict[str, set[tuple[int, int]]] = {}
        self._variables: dict[tuple[str, Hashable], dict[tuple[int, int], list[int]]] = {}

    def add(self, part: tuple[int, int], tie: Tie | None, first: int) -> None:
        """Take up a part whose options are the variables from `first` on."""
        if tie is None:
            return
        self._parts.setdefault(tie.name, set()).add(part)
        for variable, kind in enumerate(tie.kinds, first):
            held = self._variables.setdefault((tie.name, kind), {})
            held.setdefault(part, []).append(variable)

    def rows(self) -> Iterator[list[list[int]]]:
        """For each tie and kind, the variables of each of the tie's parts; some have none."""
        for (name, _), held in self._variables.items():
            yield [held.get(part, []) for part in sorted(self._parts[name])]


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


def _untied(units: Sequence[Sequence[Alternative]]) -> int:
    """Fewest bytes if there were no ties, which is where a programme's sizes count from."""
    return sum(min(alternative.smallest for alternative in unit) for unit in units)


def _smallest_choice(units: Sequence[Sequence[Alternative]]) -> list[Choice]:
    if any(any(alternative.ties) for unit in units for alternative in unit):
        programme = _programme(units)
        scale = max(float(programme.sizes.max()), 1.0)
        return _read(units, programme, _solved(programme, programme.sizes / scale, [], 0.0))
    return [_smallest_of(unit) for unit in units]


def _smallest_of(unit: Sequence[Alternative]) -> Choice:
    index = min(range(len(unit)), key=lambda i: unit[i].smallest)
    parts = unit[index].parts
    return Choice(index, [min(range(len(part)), key=lambda i: part[i][0]) for part in parts])


def _bytes(units: Sequence[Sequence[Alternative]], taken: Sequence[Choice]) -> int:
    return sum(
        part[pick][0]
        for unit, choice in zip(units, taken, strict=True)
        for part, pick in zip(unit[choice.alternative].parts, choice.options, strict=True)
    )
