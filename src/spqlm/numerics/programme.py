"""One way to shape and store every part of a model, as variables of an integer programme."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array

Priced = tuple[float, ...]
"""What an option costs of everything that is limited, and last its nats per token."""


# In place of a part's place in its unit: the shape.
SHAPE = -1


@dataclass(frozen=True)
class Tie:
    """That a part takes an option of the same kind as every other part of the tie.

    Shapes of units are tied in the same way.

    Attributes:
        name: of the tie; parts and shapes share none.
        kinds: of the part's options, in their order; of a shape its own kind alone.
    """

    name: str
    kinds: Sequence[Hashable]


@dataclass(frozen=True)
class Alternative:
    """One shape that a unit may take.

    Attributes:
        loss: what the shape itself costs, in nats per token.
        parts: for each weight of the unit in that shape, its options: what each costs of everything
            that is limited, bytes for one, and then its nats per token.
        ties: for each of the parts, its tie or None; empty where there are none. A part has the
            same tie in every shape of its unit.
        costs: what the shape itself costs of everything that is limited; empty for nothing.
        shape_ties: of the shape itself, the same in every shape of its unit.
    """

    loss: float
    parts: Sequence[Sequence[Priced]]
    ties: Sequence[Tie | None] = ()
    costs: Sequence[float] = ()
    shape_ties: Sequence[Tie] = ()

    @property
    def tied(self) -> bool:
        """Whether the shape or any of its parts is like that of other units."""
        return any(self.shape_ties) or any(self.ties)

    def least(self, resource: int) -> float:
        """The least that the shape and its parts can cost of one thing that is limited."""
        own = self.costs[resource] if self.costs else 0
        return own + sum(min(option[resource] for option in part) for part in self.parts)


Units = Sequence[Sequence[Alternative]]


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
class Programme:
    """Binary variables: one alternative per unit, one option per part of it.

    A tie has one more variable for each kind: whether it is the one that its parts take.

    Attributes:
        losses: of each variable, in nats per token.
        costs: float64 [limits, variables], above the least of each unit and part.
        equations: that a choice obeys, with their right-hand sides.
        right: these.
        starts: position of each alternative's variable; its parts' options follow in order.
    """

    losses: NDArray[np.float64]
    costs: NDArray[np.float64]
    equations: coo_array
    right: NDArray[np.float64]
    starts: list[list[int]]

    @classmethod
    def of(cls, units: Units, limits: int) -> "Programme":
        """Of units whose options cost so many things that are limited."""
        losses: list[float] = []
        costs: list[Sequence[float]] = []
        entries: list[tuple[int, int, float]] = []
        right: list[float] = []
        starts: list[list[int]] = []
        ties = _Ties()
        every = range(limits)
        for number, unit in enumerate(units):
            least = [min(alternative.least(k) for alternative in unit) for k in every]
            one_of_unit = len(right)
            right.append(1.0)
            starts.append([])
            for alternative in unit:
                shape = len(losses)
                starts[-1].append(shape)
                losses.append(alternative.loss)
                costs.append([alternative.least(k) - least[k] for k in every])
                entries.append((one_of_unit, shape, 1.0))
                for tie in alternative.shape_ties:
                    ties.add((number, SHAPE), tie, shape)
                for place, options in enumerate(alternative.parts):
                    if alternative.ties:
                        ties.add((number, place), alternative.ties[place], len(losses))
                    fewest = [min(option[k] for option in options) for k in every]
                    entries.append((len(right), shape, -1.0))
                    for option in options:
                        entries.append((len(right), len(losses), 1.0))
                        losses.append(option[-1])
                        costs.append([option[k] - fewest[k] for k in every])
                    right.append(0.0)
        for rows_of_kind in ties.rows():
            for variables in rows_of_kind:
                entries += [(len(right), variable, 1.0) for variable in variables]
                entries.append((len(right), len(losses), -1.0))
                right.append(0.0)
            losses.append(0.0)
            costs.append([0.0] * limits)
        rows, columns, values = zip(*entries, strict=True)
        equations = coo_array((values, (rows, columns)), shape=(len(right), len(losses)))
        table = np.array(costs, dtype=np.float64).T.reshape(limits, len(losses))
        return cls(np.array(losses), table, equations, np.array(right), starts)

    def read(self, units: Units, solution: NDArray[np.float64]) -> list[Choice]:
        """The choice that values of the variables stand for."""
        taken = []
        for unit, starts in zip(units, self.starts, strict=True):
            index = int(np.argmax(solution[starts]))
            position = starts[index] + 1
            options = []
            for part in unit[index].parts:
                options.append(int(np.argmax(solution[position : position + len(part)])))
                position += len(part)
            taken.append(Choice(index, options))
        return taken


class _Ties:
    """Variables of options by tie, kind and part; a part is a unit's number and a place in it.

    What is said of a part and its options goes for a unit and its shapes.
    """

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
