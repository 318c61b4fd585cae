"""Weights that are decided together, with the bytes and predicted loss of what they may become."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from spqlm.allocation.menu import Menu
from spqlm.allocation.shapes import Shape
from spqlm.changes import Cut
from spqlm.formats import Format
from spqlm.model.view import Named
from spqlm.numerics.knapsack import Alternative, Tie

# Shapes of a unit, and ranks of a weight, that are rounded before the worth is looked at anew.
AT_ONCE = 2
NO_TIES: Mapping[str, str] = {}


@dataclass
class Part:
    """One weight of a unit in one shape.

    Attributes:
        named: the module.
        cut: what the shape takes from it.
        options: that were priced.
        sizes: their bytes.
        losses: their nats per token.
        rows: the same by row, float32 [rows] each.
        estimates: options that were not rounded yet: (option, bytes, estimated loss).
        whole: how many of the options, the first ones, store the weight itself, all of it.
    """

    named: Named
    cut: Cut | None
    options: list[Format] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    rows: list[Tensor] = field(default_factory=list)
    estimates: list[tuple[Format, int, float]] = field(default_factory=list)
    whole: int = 0

    def add(self, option: Format, size: int, rows: Tensor) -> None:
        """Take up a priced option."""
        self.options.append(option)
        self.sizes.append(size)
        self.losses.append(float(rows.sum()))
        self.rows.append(rows)

    def value(self, worth: float) -> float:
        """Least loss, with bytes paid at `worth`."""
        return min(
            _paid(loss, size, worth) for size, loss in zip(self.sizes, self.losses, strict=True)
        )

    def promising(self, worth: float) -> list[Format]:
        """Formats that could pay, as far as can be told before they are rounded."""
        value = self.value(worth)
        paid = [(_paid(loss, size, worth), option) for option, size, loss in self.estimates]
        return [o for v, o in sorted(paid, key=lambda pair: pair[0])[:AT_ONCE] if v < value]

    def reduced(self, cut: Cut, menu: Menu) -> "Part":
        """The part after a cut, without rounding anew.

        Rows are rounded each by itself, so what is left of them costs what it did. Where inputs
        go, the estimate is that rounding costs in proportion to what is left.
        """
        shape = cut_shape(self.named, cut)
        index = cut.index.to(self.rows[0].device)
        left = Part(self.named, cut)
        for option, rows in zip(self.options[: self.whole], self.rows, strict=False):
            if option.misfit(*shape) is None:
                kept = rows[index] if cut.side == "output" else rows * (cut.kept / cut.units)
                left.add(option, menu.stored_bytes(self.named, option, *shape), kept)
        return left


@dataclass
class PricedShape:
    """A shape with its parts priced."""

    shape: Shape
    parts: list[Part]

    def alternative(
        self, ties: Mapping[str, str] = NO_TIES, *, estimates: bool = False
    ) -> Alternative:
        """For the knapsack; with options that were not rounded yet, or without.

        Args:
            ties: of weights that take the same option, by full name.
            estimates: whether options count that were only estimated.
        """
        parts = [
            list(zip(part.sizes, part.losses, strict=True))
            + ([(size, loss) for _, size, loss in part.estimates] if estimates else [])
            for part in self.parts
        ]
        names = [ties.get(part.named.name) for part in self.parts]
        pairs = zip(names, self.parts, strict=True)
        tied = [None if name is None else Tie(name, part.options) for name, part in pairs]
        return Alternative(self.shape.loss, parts, tied)

    def value(self, worth: float) -> float:
        """Least loss of shape and parts, with bytes paid at `worth`."""
        return _paid(self.shape.loss, 0, worth) + sum(part.value(worth) for part in self.parts)


@dataclass
class Unit:
    """Weights whose shapes are decided together.

    Attributes:
        priced: shapes with priced parts; the first is the unit as it is.
        estimated: shapes whose parts were not rounded.
    """

    priced: list[PricedShape]
    estimated: list[PricedShape] = field(default_factory=list)

    @classmethod
    def of(cls, whole: list[Part], shapes: Iterable[Shape], menu: Menu) -> "Unit":
        """From its weights, priced as they are, and shapes that it may take."""
        unit = cls([PricedShape(Shape(), whole)])
        for shape in shapes:
            parts = [part.reduced(shape.cuts[part.named.name], menu) for part in whole]
            if all(part.options for part in parts):
                unit.estimated.append(PricedShape(shape, parts))
        return unit

    def promising_shapes(self, worth: float) -> list[PricedShape]:
        """Shapes that could pay, as far as can be told before they are rounded."""
        value = min(shaped.value(worth) for shaped in self.priced)
        best = sorted(self.estimated, key=lambda shaped: shaped.value(worth))[:AT_ONCE]
        return [shaped for shaped in best if shaped.value(worth) < value]

    def promising_options(self, worth: float) -> bool:
        """Whether an option that was not rounded yet could pay."""
        return any(part.promising(worth) for shaped in self.priced for part in shaped.parts)


def _paid(loss: float, size: int, worth: float) -> float:
    """At a worth without end, where the budget is out of reach, bytes alone count."""
    return float(size) if worth == float("inf") else loss + worth * size


def cut_shape(named: Named, cut: Cut | None) -> tuple[int, int]:
    """Rows and columns that a cut leaves."""
    rows, columns = named.module.weight.shape
    if cut is None:
        return rows, columns
    left = cut.kept * cut.channels_per_unit
    return (left, columns) if cut.side == "output" else (rows, left)
