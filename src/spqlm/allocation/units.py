"""Weights that are decided together, with costs and predicted loss of what they may become."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from spqlm.allocation.resources import Costs, Disk, Resource
from spqlm.allocation.shapes import Shape
from spqlm.changes import Cut
from spqlm.formats import Format
from spqlm.model.families import Prunable
from spqlm.model.view import LayerView, Named
from spqlm.numerics.knapsack import Worth
from spqlm.numerics.programme import Alternative, Tie

# Shapes of a unit, and ranks of a weight, that are rounded before the worth is looked at anew.
AT_ONCE = 2
NO_TIES: Mapping[str, str] = {}
BYTES: Sequence[Resource] = (Disk(),)


@dataclass
class Part:
    """One weight of a unit in one shape.

    Attributes:
        named: the module.
        cut: what the shape takes from it.
        resources: that are limited.
        options: that were priced.
        costs: what they take of the resources.
        losses: their nats per token.
        rows: the same by row, float32 [rows] each.
        estimates: options that were not rounded yet: (option, costs, estimated loss).
        whole: how many of the options, the first ones, store the weight itself, all of it.
    """

    named: Named
    cut: Cut | None
    resources: Sequence[Resource] = BYTES
    options: list[Format] = field(default_factory=list)
    costs: list[Costs] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    rows: list[Tensor] = field(default_factory=list)
    estimates: list[tuple[Format, Costs, float]] = field(default_factory=list)
    whole: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns that the cut leaves."""
        return cut_shape(self.named, self.cut)

    def cost(self, option: Format) -> Costs:
        """What an option takes of the resources."""
        shape = self.shape
        return tuple(found.of_weight(self.named, option, *shape) for found in self.resources)

    def estimate(self, option: Format, loss: float) -> None:
        """Take up an option that was only estimated."""
        self.estimates.append((option, self.cost(option), loss))

    def add(self, option: Format, rows: Tensor) -> None:
        """Take up a priced option."""
        self.options.append(option)
        self.costs.append(self.cost(option))
        self.losses.append(float(rows.sum()))
        self.rows.append(rows)

    def value(self, worth: Worth) -> float:
        """Least loss, with costs paid at `worth`."""
        return min(worth.paid(*pair) for pair in zip(self.losses, self.costs, strict=True))

    def promising(self, worth: Worth) -> list[Format]:
        """Formats that could pay, as far as can be told before they are rounded."""
        value = self.value(worth) + worth.slack
        paid = [(worth.paid(loss, costs), option) for option, costs, loss in self.estimates]
        return [o for v, o in sorted(paid, key=lambda pair: pair[0])[:AT_ONCE] if v < value]

    def reduced(self, cut: Cut) -> "Part":
        """The part after a cut, without rounding anew.

        Rows are rounded each by itself, so what is left of them costs what it did. Where inputs
        go, the estimate is that rounding costs in proportion to what is left.
        """
        shape = cut_shape(self.named, cut)
        index = cut.index.to(self.rows[0].device)
        left = Part(self.named, cut, self.resources)
        for option, rows in zip(self.options[: self.whole], self.rows, strict=False):
            if option.misfit(*shape) is None:
                kept = rows[index] if cut.side == "output" else rows * (cut.kept / cut.units)
                left.add(option, kept)
        return left


@dataclass(frozen=True)
class Block:
    """What is cut as one.

    Attributes:
        kind: an MLP or an attention block.
        size: neurons or key/value groups that it has.
    """

    kind: Prunable
    size: int

    def tie(self, kept: int | None) -> Tie:
        """Of one that is cut to a size, None for as it is, with those that are as large now."""
        return Tie(f"{self.kind} of {self.size}", [kept])

    @classmethod
    def of(cls, layer: LayerView, kind: Prunable) -> "Block | None":
        """That of a layer; None where it is not known which rows and columns belong to what."""
        return cls(kind, layer.units(kind)) if layer.prunable(kind) else None


@dataclass(frozen=True)
class LeftOut:
    """That a unit may go with all of its layer.

    Attributes:
        layer: full name.
        loss: nats per token; the first unit of the layer has all of it, and the others none.
        costs: what the layer takes besides its units, the same.
    """

    layer: str
    loss: float
    costs: Costs

    def value(self, worth: Worth) -> float:
        """What that loses, with costs paid at `worth`."""
        return worth.paid(self.loss, self.costs)

    def tie(self, *, gone: bool) -> Tie:
        """With the other units of the layer."""
        return Tie(f"layer {self.layer}", [gone])


@dataclass
class PricedShape:
    """A shape with its parts priced."""

    shape: Shape
    parts: list[Part]

    @property
    def kept(self) -> int | None:
        """Neurons or key/value groups that are left; None where nothing is cut."""
        return next((cut.kept for cut in self.shape.cuts.values()), None)

    def alternative(
        self,
        ties: Mapping[str, str] = NO_TIES,
        shape_ties: Sequence[Tie] = (),
        *,
        estimates: bool = False,
    ) -> Alternative:
        """For the knapsack; with options that were not rounded yet, or without.

        Args:
            ties: of weights that take the same option, by full name.
            shape_ties: with other units.
            estimates: whether options count that were only estimated.
        """
        parts = [
            [(*costs, loss) for costs, loss in zip(part.costs, part.losses, strict=True)]
            + ([(*costs, loss) for _, costs, loss in part.estimates] if estimates else [])
            for part in self.parts
        ]
        names = [ties.get(part.named.name) for part in self.parts]
        pairs = zip(names, self.parts, strict=True)
        tied = [None if name is None else Tie(name, part.options) for name, part in pairs]
        return Alternative(self.shape.loss, parts, tied, self.costs, shape_ties)

    @property
    def costs(self) -> Costs:
        """What the shape takes of the resources besides its parts: see `Resource.of_cuts`."""
        resources = self.parts[0].resources if self.parts else ()
        return tuple(found.of_cuts(self.shape.cuts) for found in resources)

    def value(self, worth: Worth) -> float:
        """Least loss of shape and parts, with costs paid at `worth`."""
        own = worth.paid(self.shape.loss, self.costs)
        return own + sum(part.value(worth) for part in self.parts)


@dataclass
class Unit:
    """Weights whose shapes are decided together.

    Attributes:
        priced: shapes with priced parts; the first is the unit as it is.
        estimated: shapes whose parts were not rounded.
        wanted: those of them that are rounded next.
        block: that the weights are; None where they cannot be cut as one.
        left_out: how it goes with all of its layer; None where that stays.
    """

    priced: list[PricedShape]
    estimated: list[PricedShape] = field(default_factory=list)
    wanted: list[PricedShape] = field(default_factory=list)
    block: Block | None = None
    left_out: LeftOut | None = None

    @classmethod
    def of(cls, whole: list[Part], shapes: Iterable[Shape]) -> "Unit":
        """From its weights, priced as they are, and shapes that it may take."""
        unit = cls([PricedShape(Shape(), whole)])
        for shape in shapes:
            parts = [part.reduced(shape.cuts[part.named.name]) for part in whole]
            if all(part.options for part in parts):
                unit.estimated.append(PricedShape(shape, parts))
        return unit

    def value(self, worth: Worth) -> float:
        """Least loss of what was priced, with costs paid at `worth`."""
        return min(shaped.value(worth) for shaped in self.priced)

    def promising_shapes(self, worth: Worth) -> list[PricedShape]:
        """Shapes that could pay, as far as can be told before they are rounded."""
        value = self.value(worth) + worth.slack
        best = sorted(self.estimated, key=lambda shaped: shaped.value(worth))[:AT_ONCE]
        return [shaped for shaped in best if shaped.value(worth) < value]

    def want(self, shapes: list[PricedShape]) -> None:
        """Have some of the estimated shapes rounded next."""
        self.wanted = shapes
        self.estimated = [shaped for shaped in self.estimated if shaped not in shapes]

    def alternatives(
        self, shapes: Sequence[PricedShape], ties: Mapping[str, str], *, even: bool, estimates: bool
    ) -> list[Alternative]:
        """Some of the shapes, in their order, and behind them going with the layer.

        Args:
            shapes: of the unit.
            ties: of weights that take the same option, by full name.
            even: whether blocks that are as large now are to stay so.
            estimates: whether options count that were only estimated.
        """
        block = self.block if even else None
        stays = [] if self.left_out is None else [self.left_out.tie(gone=False)]

        def sized(kept: int | None) -> list[Tie]:
            return [] if block is None else [block.tie(kept)]

        found = [
            shaped.alternative(ties, [*sized(shaped.kept), *stays], estimates=estimates)
            for shaped in shapes
        ]
        if self.left_out is None:
            return found
        # One that is gone is no smaller than the others of its size, whichever that is.
        sizes = dict.fromkeys(shaped.kept for shaped in shapes) if block else (None,)
        gone = self.left_out.tie(gone=True)
        whole = found[0]
        # Nor is any of its weights stored otherwise than those of its tie.
        ties_of = whole.ties or [None] * len(whole.parts)
        parts = [
            [(0.0,) * len(option) for option in (part if tie else part[:1])]
            for part, tie in zip(whole.parts, ties_of, strict=True)
        ]
        loss, costs = self.left_out.loss, self.left_out.costs
        return found + [
            Alternative(loss, parts, whole.ties, costs, [*sized(kept), gone]) for kept in sizes
        ]

    def promising_options(self, worth: Worth) -> bool:
        """Whether an option that was not rounded yet could pay."""
        return any(part.promising(worth) for shaped in self.priced for part in shaped.parts)


def cut_shape(named: Named, cut: Cut | None) -> tuple[int, int]:
    """Rows and columns that a cut leaves."""
    rows, columns = named.module.weight.shape
    if cut is None:
        return rows, columns
    left = cut.kept * cut.channels_per_unit
    return (left, columns) if cut.side == "output" else (rows, left)
