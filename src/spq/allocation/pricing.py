"""Prices: bytes and predicted loss of every way to shape and store the weights of a unit.

Storing is dear to price, since each weight is rounded to find out; what a shape or a rank costs by
itself is not, nor how much the least salient groups weigh. So those are first estimated without
rounding (`Part.estimates`, `Unit.estimated`), and rounded only where that could pay at the worth of
a byte under the budget.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from spq.allocation.estimates import low_rank_losses, sparse_losses
from spq.allocation.shapes import Cut, Shape
from spq.allocation.storage import Metric, Option, Rounding, factorise, store
from spq.errors import SpqError
from spq.numerics.knapsack import Alternative
from spq.numerics.low_rank import weighted_basis
from spq.view import Named, Role

# Shapes of a unit, and ranks of a weight, that are rounded before the worth is looked at anew.
AT_ONCE = 2


@dataclass(frozen=True)
class Menu:
    """Which options a weight has.

    Attributes:
        bits: by role.
        group_sizes: of 4-bit codes.
        ranks: by role, as shares of the rank at which two factors are as large as the weight.
        rounding: by bits.
        sparsities: by role, shares of the groups that 4-bit weights may do without.
        sparse_group_size: of those groups.
    """

    bits: Mapping[Role, tuple[int, ...]]
    group_sizes: tuple[int, ...]
    ranks: Mapping[Role, tuple[float, ...]]
    rounding: Mapping[int, Rounding]
    sparsities: Mapping[Role, tuple[float, ...]] = field(default_factory=dict)
    sparse_group_size: int = 16

    def options(self, named: Named, columns: int) -> list[Option]:
        """Ways to store the weight itself; none where no group size divides its width."""
        return [option for option in self._allowed(named) if option.fits(columns)]

    def check(self, named: Named) -> None:
        """Refuse a weight that there is no way to store.

        Raises:
            SpqError: no group size divides its width.
        """
        columns = named.module.weight.shape[1]
        if not self.options(named, columns):
            raise SpqError(
                f"group sizes {list(self.group_sizes)} do not divide the width {columns} of "
                f"{named.name!r}; allow 8 bits or another group size"
            )

    def low_rank(self, named: Named, rows: int, columns: int) -> list[Option]:
        """Ways to store two factors of a weight [rows, columns], where those are smaller."""
        multiple = min(self.group_sizes, default=32)
        even = rows * columns / (rows + columns)
        shares = self.ranks.get(named.role, ())
        wanted = {int(share * even) // multiple * multiple for share in shares}
        ranked = [
            option.model_copy(update={"rank": rank})
            for rank in sorted(wanted - {0}, reverse=True)
            for option in self._allowed(named)
        ]
        return [option for option in ranked if option.fits(columns)]

    def sparse(self, named: Named, columns: int) -> list[Option]:
        """Ways to store only some groups of a weight, where that leaves each row some."""
        size = self.sparse_group_size
        if 4 not in self.bits[named.role] or columns % size:
            return []
        return [
            Option(bits=4, group_size=size, sparsity=share)
            for share in self.sparsities.get(named.role, ())
            if columns // size * (1 - share) >= 1
        ]

    def _allowed(self, named: Named) -> list[Option]:
        bits = self.bits[named.role]
        grouped = [Option(bits=4, group_size=size) for size in self.group_sizes if 4 in bits]
        return grouped + [Option(bits=wide) for wide in (8, 16) if wide in bits]


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
    """

    named: Named
    cut: Cut | None
    options: list[Option] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    rows: list[Tensor] = field(default_factory=list)
    estimates: list[tuple[Option, int, float]] = field(default_factory=list)

    def add(self, option: Option, size: int, rows: Tensor) -> None:
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

    def promising(self, worth: float) -> list[Option]:
        """Options that could pay, as far as can be told before they are rounded."""
        value = self.value(worth)
        paid = [(_paid(loss, size, worth), option) for option, size, loss in self.estimates]
        return [o for v, o in sorted(paid, key=lambda pair: pair[0])[:AT_ONCE] if v < value]

    def reduced(self, cut: Cut) -> "Part":
        """The part after a cut, without rounding anew.

        Rows are rounded each by itself, so what is left of them costs what it did. Where inputs
        go, the estimate is that rounding costs in proportion to what is left.
        """
        shape = cut_shape(self.named, cut)
        index = cut.index.to(self.rows[0].device)
        left = Part(self.named, cut)
        for option, rows in zip(self.options, self.rows, strict=True):
            if option.plain and option.fits(shape[1]):
                kept = rows[index] if cut.side == "output" else rows * (cut.kept / cut.units)
                left.add(option, stored_bytes(self.named, option, *shape), kept)
        return left


@dataclass
class PricedShape:
    """A shape with its parts priced."""

    shape: Shape
    parts: list[Part]

    def alternative(self, *, estimates: bool = False) -> Alternative:
        """For the knapsack; with options that were not rounded yet, or without."""
        parts = [
            list(zip(part.sizes, part.losses, strict=True))
            + ([(size, loss) for _, size, loss in part.estimates] if estimates else [])
            for part in self.parts
        ]
        return Alternative(self.shape.loss, parts)

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
    def of(cls, whole: list[Part], shapes: Iterable[Shape]) -> "Unit":
        """From its weights, priced as they are, and shapes that it may take."""
        unit = cls([PricedShape(Shape(), whole)])
        for shape in shapes:
            parts = [part.reduced(shape.cuts[part.named.name]) for part in whole]
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


class Pricer:
    """Prices weights of a menu in the metrics of a layer."""

    def __init__(self, menu: Menu, fit: Mapping[str, Metric], price: Mapping[str, Metric]) -> None:
        """Fit in one metric, price in the other; both by full name of the module."""
        self._menu = menu
        self.fit = fit
        self.price = price

    def deepen(self, unit: Unit, worth: float) -> None:
        """Price the shapes and options of a unit that could pay at `worth` nats per byte."""
        promising = unit.promising_shapes(worth)
        unit.estimated = [shaped for shaped in unit.estimated if shaped not in promising]
        for shaped in promising:
            parts = [self._exact(part, shaped.shape) for part in shaped.parts]
            unit.priced.append(PricedShape(shaped.shape, parts))
        for shaped in unit.priced:
            for part in shaped.parts:
                self._add_promising(part, shaped.shape, part.promising(worth))

    def _exact(self, part: Part, shape: Shape) -> Part:
        """An estimated part as it is when priced; a row's price already is."""
        exact = part.cut is not None and part.cut.side == "output"
        role = part.named.role
        if exact and not self._menu.ranks.get(role) and not self._menu.sparsities.get(role):
            return part
        return self.part(part.named, shape)

    def part(self, named: Named, shape: Shape) -> Part:
        """Price the options that store every group of the weight itself; estimate the others."""
        cut, weight, fit, price = self._shaped(named, shape)
        part = Part(named, cut)
        rows, columns = weight.shape
        for option in self._menu.options(named, columns):
            self._add(part, weight, option, fit, price, None)
        rounding = dict(zip(part.options, part.losses, strict=True))
        found = [
            *low_rank_losses(self._menu.low_rank(named, rows, columns), weight, price, rounding),
            *sparse_losses(self._menu.sparse(named, columns), weight, price, rounding),
        ]
        part.estimates = [
            (option, stored_bytes(named, option, rows, columns), loss) for option, loss in found
        ]
        return part

    def _add_promising(self, part: Part, shape: Shape, options: list[Option]) -> None:
        if not options:
            return
        _, weight, fit, price = self._shaped(part.named, shape)
        basis = None
        if any(option.rank is not None for option in options):
            _, basis = weighted_basis(weight, *fit.terms[0])
        for option in options:
            self._add(part, weight, option, fit, price, basis)
        part.estimates = [found for found in part.estimates if found[0] not in options]

    def _shaped(self, named: Named, shape: Shape) -> tuple[Cut | None, Tensor, Metric, Metric]:
        cut = shape.cuts.get(named.name)
        weight = named.module.weight.detach().float()
        fit, price = self.fit[named.name], self.price[named.name]
        if cut is None:
            return None, weight, fit, price
        return cut, cut.weight(weight, fit), cut.metric(fit), cut.metric(price)

    @torch.no_grad()
    def _add(
        self,
        part: Part,
        weight: Tensor,
        option: Option,
        fit: Metric,
        price: Metric,
        basis: Tensor | None,
    ) -> None:
        rounding = self._menu.rounding[option.bits]
        if option.rank is not None and basis is not None:
            stored = factorise(weight, basis, option, fit, rounding).restored
        else:
            stored = store(weight, option, fit, rounding).restored
        size = stored_bytes(part.named, option, *weight.shape)
        part.add(option, size, price.row_losses(stored - weight))


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


def stored_bytes(named: Named, option: Option, rows: int, columns: int) -> int:
    """Of a weight [rows, columns] and its bias."""
    weight, bias = named.module.weight, getattr(named.module, "bias", None)
    extra = 0 if bias is None else rows * bias.element_size()
    return option.stored_bytes(rows, columns, weight.element_size()) + extra
