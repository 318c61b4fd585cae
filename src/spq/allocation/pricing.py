"""Prices: bytes and predicted loss of every way to shape and store the weights of a unit.

Storing is dear to price, since each weight is rounded to find out; what a shape or a rank costs by
itself is not. So those are first looked at without rounding (`Part.ranks`, `Unit.shapes`), and
rounded only where that could pay at the worth of a byte under the budget.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor

from spq.allocation.shapes import Cut, Shape
from spq.allocation.storage import Metric, Option, Rounding, factorise, store
from spq.errors import SpqError
from spq.numerics.knapsack import Alternative
from spq.numerics.low_rank import weighted_basis
from spq.view import Named, Role


@dataclass(frozen=True)
class Menu:
    """Which options a weight has.

    Attributes:
        bits: by role.
        group_sizes: of 4-bit codes.
        ranks: by role, as shares of the rank at which two factors are as large as the weight.
        rounding: by bits.
    """

    bits: Mapping[Role, tuple[int, ...]]
    group_sizes: tuple[int, ...]
    ranks: Mapping[Role, tuple[float, ...]]
    rounding: Mapping[int, Rounding]

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
        ranks: options with a rank that were not rounded yet: (option, bytes, least loss that any
            factors of the rank could have).
    """

    named: Named
    cut: Cut | None
    options: list[Option] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    ranks: list[tuple[Option, int, float]] = field(default_factory=list)

    def add(self, option: Option, size: int, loss: float) -> None:
        """Take up a priced option."""
        self.options.append(option)
        self.sizes.append(size)
        self.losses.append(loss)

    def value(self, worth: float) -> float:
        """Least loss, with bytes paid at `worth`."""
        return min(
            _paid(loss, size, worth) for size, loss in zip(self.sizes, self.losses, strict=True)
        )

    def promising(self, worth: float) -> list[Option]:
        """Ranks that could be in a best solution: what rounding adds is still left out."""
        value = self.value(worth)
        return [option for option, size, loss in self.ranks if _paid(loss, size, worth) < value]


@dataclass
class PricedShape:
    """A shape with its parts priced."""

    shape: Shape
    parts: list[Part]

    @property
    def alternative(self) -> Alternative:
        """For the knapsack."""
        parts = [list(zip(part.sizes, part.losses, strict=True)) for part in self.parts]
        return Alternative(self.shape.loss, parts)

    def value(self, worth: float) -> float:
        """Least loss of shape and parts, with bytes paid at `worth`."""
        return _paid(self.shape.loss, 0, worth) + sum(part.value(worth) for part in self.parts)


@dataclass
class Unit:
    """Weights whose shapes are decided together.

    Attributes:
        priced: shapes with priced parts; the first is the unit as it is.
        shapes: that were not priced yet, with the fewest bytes they can take.
    """

    priced: list[PricedShape]
    shapes: list[tuple[Shape, int]] = field(default_factory=list)

    def promising_shapes(self, worth: float) -> list[Shape]:
        """Shapes that could be in a best solution."""
        value = min(shaped.value(worth) for shaped in self.priced)
        return [shape for shape, size in self.shapes if _paid(shape.loss, size, worth) < value]

    def promising_ranks(self, worth: float) -> bool:
        """Whether a rank could be."""
        return any(part.promising(worth) for shaped in self.priced for part in shaped.parts)


class Pricer:
    """Prices weights of a menu in the metrics of a layer."""

    def __init__(self, menu: Menu, fit: Mapping[str, Metric], price: Mapping[str, Metric]) -> None:
        """Fit in one metric, price in the other; both by full name of the module."""
        self._menu = menu
        self.fit = fit
        self.price = price

    def deepen(self, unit: Unit, worth: float) -> None:
        """Price the shapes and ranks of a unit that could pay at `worth` nats per byte."""
        members = [part.named for part in unit.priced[0].parts]
        promising = unit.promising_shapes(worth)
        unit.shapes = [(shape, size) for shape, size in unit.shapes if shape not in promising]
        for shape in promising:
            unit.priced.append(PricedShape(shape, [self.part(named, shape) for named in members]))
        for shaped in unit.priced:
            for part in shaped.parts:
                self._add_ranks(part, shaped.shape, part.promising(worth))

    def part(self, named: Named, shape: Shape) -> Part:
        """Price every option without a rank; list those with one."""
        cut, weight, fit, price = self._shaped(named, shape)
        part = Part(named, cut)
        rows, columns = weight.shape
        for option in self._menu.options(named, columns):
            self._add(part, weight, option, fit, price, None)
        ranked = self._menu.low_rank(named, rows, columns)
        if ranked:
            losses, _ = weighted_basis(weight, *price.terms[0])
            tails = list(accumulate(reversed(losses.tolist()), initial=0.0))
            part.ranks = [
                (option, stored_bytes(named, option, rows, columns), tails[rows - option.rank])
                for option in ranked
                if option.rank is not None and option.rank < rows
            ]
        return part

    def _add_ranks(self, part: Part, shape: Shape, options: list[Option]) -> None:
        if options:
            _, weight, fit, price = self._shaped(part.named, shape)
            _, basis = weighted_basis(weight, *fit.terms[0])
            for option in options:
                self._add(part, weight, option, fit, price, basis)
            part.ranks = [ranked for ranked in part.ranks if ranked[0] not in options]

    def smallest(self, named: Named, shape: Shape) -> int | None:
        """Fewest bytes that a weight could take in a shape; None where no group size fits."""
        rows, columns = cut_shape(named, shape.cuts.get(named.name))
        options = self._menu.options(named, columns) + self._menu.low_rank(named, rows, columns)
        sizes = (stored_bytes(named, option, rows, columns) for option in options)
        return min(sizes, default=None)

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
        if basis is None:
            stored = store(weight, option, fit, rounding).restored
        else:
            stored = factorise(weight, basis, option, fit, rounding).restored
        size = stored_bytes(part.named, option, *weight.shape)
        part.add(option, size, price.loss(stored - weight))


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
