"""Prices: costs and predicted loss of every way to shape and store the weights of a unit.

Storing is dear to price, since rows of each weight are rounded to find out; what a shape or a rank
costs by itself is not, nor how much the least salient groups weigh. So those are first estimated
without rounding (`Part.estimates`, `Unit.estimated`), and rounded only where that could pay at what
each limited thing is worth.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from spqlm.allocation.estimates import low_rank_losses, sparse_losses
from spqlm.allocation.menu import Menu
from spqlm.allocation.resources import Resource
from spqlm.allocation.shapes import Shape, cut_metric, cut_weight
from spqlm.allocation.units import BYTES, Part, PricedShape, Unit
from spqlm.changes import Cut
from spqlm.formats import Format
from spqlm.formats.low_rank import LowRank
from spqlm.model.soundness import fitting
from spqlm.model.view import Named
from spqlm.numerics.knapsack import Worth
from spqlm.numerics.low_rank import weighted_basis
from spqlm.numerics.metric import Metric

# Rows of a weight that are rounded to price it: as many, or a share of a weight of many rows.
SAMPLED_ROWS = 256
SAMPLED_SHARE = 1 / 12
# Rows that are rounded to see how much descent takes off the loss.
PROBED_ROWS = 64
TINY = torch.finfo(torch.float32).tiny


class Pricer:
    """Prices weights of a menu in the metrics of a layer."""

    def __init__(
        self,
        menu: Menu,
        fit: Mapping[str, Metric],
        price: Mapping[str, Metric],
        resources: Sequence[Resource] = BYTES,
    ) -> None:
        """Fit in one metric, price in the other, both by full name; costs are of the resources."""
        self._menu = menu
        self._resources = resources
        self.fit = fit
        self.price = price

    def deepen(self, unit: Unit, worth: Worth) -> None:
        """Price the shapes of a unit that are wanted, and options that could pay at `worth`."""
        for shaped in unit.wanted:
            parts = [self._exact(part, shaped.shape) for part in shaped.parts]
            unit.priced.append(PricedShape(shaped.shape, parts))
        unit.wanted = []
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
        """Price the options that store every group of the weight itself; estimate the others.

        Raises:
            SpqError: its numbers are such that arithmetic fails.
        """
        with fitting(named.name):
            return self._part(named, shape)

    def _part(self, named: Named, shape: Shape) -> Part:
        cut, weight, fit, price = self._shaped(named, shape)
        part = Part(named, cut, self._resources)
        rows, columns = weight.shape
        options = self._menu.options(named, rows, columns)
        probe = self._menu.descent_probe(options)
        left = 1.0 if probe is None else self._left_by_descent(weight, probe, fit, price)
        for option in options:
            losses = self._sampled(weight, option, fit, price)
            improved = self._menu.rounding_of(option) == "descent"
            part.add(option, losses * left if improved else losses)
        part.whole = len(part.options)
        rounding = dict(zip(part.options, part.losses, strict=True))
        found = [
            *low_rank_losses(self._menu.low_rank(named, rows, columns), weight, price, rounding),
            *sparse_losses(self._menu.sparse(named, rows, columns), weight, price, rounding),
        ]
        for option, loss in found:
            part.estimate(option, loss)
        return part

    def _add_promising(self, part: Part, shape: Shape, options: list[Format]) -> None:
        if not options:
            return
        _, weight, fit, price = self._shaped(part.named, shape)
        weight = weight.float()
        basis = None
        if any(isinstance(option, LowRank) for option in options):
            _, basis = weighted_basis(weight, *fit.terms[0])
        for option in options:
            self._add(part, weight, option, fit, price, basis)
        part.estimates = [found for found in part.estimates if found[0] not in options]

    def _shaped(self, named: Named, shape: Shape) -> tuple[Cut | None, Tensor, Metric, Metric]:
        """The cut, what it leaves of the weight, and its metrics.

        In the weight's own dtype as far as it can be: an embedding in float32 may be larger than
        all else that is held.
        """
        cut, weight = shape.cuts.get(named.name), named.module.weight.detach()
        fit, price = self.fit[named.name], self.price[named.name]
        if cut is None:
            return None, weight, fit, price
        weight = cut_weight(cut, weight.float(), fit)
        return cut, weight, cut_metric(cut, fit), cut_metric(cut, price)

    @torch.no_grad()
    def _left_by_descent(self, weight: Tensor, probe: Format, fit: Metric, price: Metric) -> float:
        """Which share of the loss after GPTQ descent leaves: in one format, on some rows.

        Descent takes several times longer than GPTQ, and about as large a part of the loss off
        every format.
        """
        index = spread_rows(len(weight), PROBED_ROWS).to(weight.device)
        some, metric = weight[index].float(), fit.rows(index)
        before, after = (
            price.rows(index).row_losses(probe.fit(some, metric, rounding).restore() - some).sum()
            for rounding in ("gptq", "descent")
        )
        return float(after / before) if before > TINY else 1.0

    @torch.no_grad()
    def _sampled(self, weight: Tensor, option: Format, fit: Metric, price: Metric) -> Tensor:
        """Losses of all rows: some are rounded, and the others cost as much for what they weigh."""
        index = sampled_rows(len(weight)).to(weight.device)
        some = weight[index].float()
        stored = option.fit(some, fit.rows(index), self._menu.sampled_rounding_of(option)).restore()
        losses = _row_losses(option, price.rows(index), stored, some)
        energy = price.energy(weight)
        rows = energy * (losses.sum() / energy[index].sum().clamp_min(TINY))
        rows[index] = losses
        return rows

    @torch.no_grad()
    def _add(
        self,
        part: Part,
        weight: Tensor,
        option: Format,
        fit: Metric,
        price: Metric,
        basis: Tensor | None,
    ) -> None:
        rounding = self._menu.rounding_of(option)
        if isinstance(option, LowRank):
            stored = option.fit(weight, fit, rounding, basis).restore()
        else:
            stored = option.fit(weight, fit, rounding).restore()
        part.add(option, _row_losses(option, price, stored, weight))


def _row_losses(option: Format, price: Metric, stored: Tensor, weight: Tensor) -> Tensor:
    """What each row costs that is stored so, and what enters it where that is rounded, too."""
    losses = price.row_losses(stored - weight)
    return losses + price.noise_losses(stored) if option.rounds_inputs else losses


def sampled_rows(count: int) -> Tensor:
    """Which of so many rows stand for all: int64, ascending."""
    return spread_rows(count, max(SAMPLED_ROWS, int(count * SAMPLED_SHARE)))


def spread_rows(count: int, wanted: int) -> Tensor:
    """`wanted` of `count` rows, or all, evenly spread: int64, ascending."""
    return torch.linspace(0, count - 1, min(count, wanted)).round().long()
