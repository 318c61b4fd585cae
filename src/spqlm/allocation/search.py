"""From a model and its sensitivities to priced units: one walk, and a second where it could pay."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from torch import nn

from spqlm import ranks
from spqlm.allocation.menu import Menu
from spqlm.allocation.pricing import Pricer
from spqlm.allocation.resources import Resource
from spqlm.allocation.shapes import Shape, shapes
from spqlm.allocation.together import (
    drop_unstated,
    least_together,
    promising_together,
    saved_by_going,
)
from spqlm.allocation.units import BYTES, NO_TIES, Block, LeftOut, Part, Unit
from spqlm.calibration.sensitivity import Sensitivity
from spqlm.calibration.statistics import Statistics
from spqlm.layerwise.held_metrics import HeldMetrics
from spqlm.layerwise.loop import LayerLoop, Sink
from spqlm.layerwise.metrics import (
    Weighting,
    outer_metric,
    short_of_tokens,
    split,
)
from spqlm.model.families import Prunable
from spqlm.model.mapped import release
from spqlm.model.view import LayerView, ModelView, Named
from spqlm.numerics.knapsack import Worth, choose, total_loss, worth
from spqlm.numerics.programme import Alternative
from spqlm.numerics.threads import share_out

Shares = Mapping[Prunable, tuple[float, ...]]


class Prices(Protocol):
    """What was priced before, and where what is priced goes; see `price_cache.PriceFiles`."""

    def layers(self, units: dict[str, list[Unit]], worth: Worth | None) -> Sink:
        """Units by layer, priced at a worth of what is limited."""

    def outer(self, name: str, price: Callable[[], Unit]) -> Unit:
        """The unit of the embedding or the lm_head."""


@dataclass
class Search:
    """Prices the units of a model.

    Attributes:
        view: with dense weights.
        statistics: sensitivities and the windows they were collected on.
        menu: options of each weight.
        shares: sizes that each kind of unit may take, as shares.
        multiple_of: what widths are rounded to.
        token_power: see `Weighting`.
        prices: those of earlier searches; None keeps none.
        resources: that are limited.
        even: whether layers that are as large now are to stay so.
        left_out: layers that may go, by full name, and what that costs in nats per token.
    """

    view: ModelView
    statistics: Statistics
    menu: Menu
    shares: Shares
    multiple_of: int
    token_power: float
    prices: Prices | None = None
    resources: Sequence[Resource] = BYTES
    even: bool = False
    left_out: Mapping[str, float] = field(default_factory=dict)

    @property
    def _sensitivities(self) -> Mapping[str, Sensitivity]:
        return self.statistics.sensitivities

    @property
    def _weightings(self) -> tuple[Weighting, Weighting]:
        return split(len(self.statistics.windows), self.token_power)

    @property
    def short_of_text(self) -> str:
        """What to say where some layer is wider than there are tokens to fit it on, else empty."""
        tokens = len(self._weightings[0].windows) * self.statistics.windows.shape[1]
        widest = max(named.module.weight.shape[1] for named in dense_weights(self.view))
        if tokens >= widest:
            return ""
        return (
            f"fitted on {tokens} tokens of calibration text, fewer than the {widest} inputs of the "
            "widest layer, so damping was raised; more text would serve it better"
        )

    @property
    def short_of_tokens(self) -> str:
        """What to say where few tokens were routed to some experts, else empty."""
        layers = self.view.layers
        few = sum(len(short_of_tokens(layer, self._sensitivities)) for layer in layers)
        if not few:
            return ""
        every = sum(len(layer.experts) for layer in layers)
        return (
            f"{few} of {every} weights of experts have more inputs than tokens were routed to them,"
            " so they were fitted on all the calibration text"
        )

    def units(self) -> list[Unit]:
        """Every unit, priced in the shape and at the rank that it has."""
        found: dict[str, list[Unit]] = {layer.name: [] for layer in self.view.layers}

        def price(layer: LayerView, pricer: Pricer, metrics: HeldMetrics) -> None:
            members = [n for kind in self.shares for n in self._members(layer, kind)]
            whole: dict[str, Part] = {}
            for group in metrics.groups(members):
                parts = share_out(
                    lambda named: pricer.part(named, Shape()),
                    group,
                    lambda named: named.entries,
                    self.view.model.device,
                )
                whole |= zip((named.name for named in group), parts, strict=True)
            found[layer.name] += [self._unit(layer, kind, pricer, whole) for kind in self.shares]

        everything = {layer: set(self._sensitivities) for layer in found}
        self._walk(everything, price, "pricing", self._sink(found))
        for layer in self.view.layers:
            for kind, unit in zip(self.shares, found[layer.name], strict=True):
                unit.block = Block.of(layer, kind)
            may_go(self.view, layer, found[layer.name], self.left_out, self.resources)
        inner = [unit for units in found.values() for unit in units]
        if self.even:
            drop_unstated(self.view, inner)
        return inner + [self._outer(named) for named in outer_weights(self.view)]

    def spend(self, units: list[Unit], *available: float) -> None:
        """Price shapes and options until the best ones within the limits are among those priced.

        What a byte or a millisecond is worth follows from the estimates. Where even they cannot
        meet the limits, or what was priced cannot, those are priced that come nearest. Last come
        those that only a choice without fractions could want.

        Args:
            units: of the model.
            available: the most of each resource.
        """
        even = self.even
        while self.deepen(units, worth([hopes(u, even=even) for u in units], *available)):
            pass
        found = worth([alternatives(u, even=even) for u in units], *available)
        while not found.within and self.deepen(units, found):
            found = worth([alternatives(u, even=even) for u in units], *available)
        while found.within and self.deepen(units, self._loosened(units, found, available)):
            found = worth([alternatives(u, even=even) for u in units], *available)

    def _loosened(self, units: list[Unit], worth: Worth, available: Sequence[float]) -> Worth:
        """The same worth, with what lies between the relaxed programme and whole choices.

        Every part of a choice costs at least the least at that worth. So no part of a choice that
        is better than the best known one can be dearer than the cheapest by more than what the
        known one, with all that is available paid for, lies above the sum of the least.
        """
        priced = [alternatives(unit, even=self.even) for unit in units]
        try:
            known = total_loss(priced, choose(priced, *available))
        except ValueError:  # only fractions of choices keep within the limits
            return worth
        least = least_together(units, worth) if self.even else sum(u.value(worth) for u in units)
        least -= saved_by_going(units, worth)
        return replace(worth, slack=max(0.0, worth.paid(known, available) - least))

    def deepen(self, units: list[Unit], worth: Worth) -> bool:
        """Price the shapes and options that could pay at `worth`.

        Returns:
            whether there were any.
        """
        shapes = (
            promising_together(units, worth)
            if self.even
            else [unit.promising_shapes(worth) for unit in units]
        )
        for unit, promising in zip(units, shapes, strict=True):
            unit.want(promising)
        per_layer = len(self.shares)
        wanted: dict[str, list[Unit]] = {}
        for index, layer in enumerate(self.view.layers):
            for unit in units[index * per_layer : (index + 1) * per_layer]:
                if unit.wanted or unit.promising_options(worth):
                    wanted.setdefault(layer.name, []).append(unit)

        def price(layer: LayerView, pricer: Pricer, _: HeldMetrics) -> None:
            for unit in wanted[layer.name]:
                pricer.deepen(unit, worth)

        if not wanted:
            return False
        names = {layer: _members(found) for layer, found in wanted.items()}
        self._walk(names, price, "pricing shapes", self._sink(wanted, worth))
        return True

    def _sink(self, units: dict[str, list[Unit]], worth: Worth | None = None) -> Sink | None:
        return None if self.prices is None else self.prices.layers(units, worth)

    def _walk(
        self,
        names: Mapping[str, Collection[str]],
        price: Callable[[LayerView, Pricer, HeldMetrics], None],
        title: str,
        sink: Sink | None,
    ) -> None:
        """Price the layers that `names` has, in metrics of the weights that it names for each.

        Of several processes each prices its share, and reads the others' from their files.
        """
        if sink is not None and ranks.several():
            share = {layer: names[layer] for layer in ranks.mine(list(names))}
            self._price(share, price, title, sink)
            ranks.wait()
        self._price(names, price, title, sink)

    def _price(
        self,
        names: Mapping[str, Collection[str]],
        price: Callable[[LayerView, Pricer, HeldMetrics], None],
        title: str,
        sink: Sink | None,
    ) -> None:
        windows = self.statistics.windows
        for step in LayerLoop(self.view, windows, title, sink=sink, only=names, frozen=True):
            members = names[step.layer.name]
            wanted = {n: s for n, s in self._sensitivities.items() if n in members}
            noise = self._weightings[1] if self.menu.rounds_inputs else None
            metrics = HeldMetrics(step, wanted, self._weightings, noise=noise)
            fit, held_out = metrics.by_weighting
            price(step.layer, Pricer(self.menu, fit, held_out, self.resources), metrics)
            del metrics, fit, held_out  # before the next layer's take their memory

    def _members(self, layer: LayerView, kind: Prunable) -> list[Named]:
        found = [named for named in layer.leaves if named.role == kind]
        return [named for named in found if named.name in self._sensitivities]

    def _unit(
        self, layer: LayerView, kind: Prunable, pricer: Pricer, parts: Mapping[str, Part]
    ) -> Unit:
        members = self._members(layer, kind)
        whole = [parts[named.name] for named in members]
        sides = {named.name for named, _ in layer.sides(kind)}
        if not sides or sides != {named.name for named in members}:
            return Unit.of(whole, [])
        multiple_of = self.multiple_of if kind == "mlp" else 1
        found = shapes(layer, kind, self.shares[kind], multiple_of, pricer.fit, pricer.price)
        return Unit.of(whole, found)

    def _outer(self, named: Named) -> Unit:
        if self.prices is not None:
            return self.prices.outer(named.name, lambda: self._priced_outer(named))
        return self._priced_outer(named)

    def _priced_outer(self, named: Named) -> Unit:
        fit, price = (
            {named.name: outer_metric(self.view, named.name, self._sensitivities, weighting)}
            for weighting in self._weightings
        )
        part = Pricer(self.menu, fit, price, self.resources).part(named, Shape())
        release(named.module.parameters())
        return Unit.of([part], [])


def outer_weights(view: ModelView) -> list[Named]:
    """Embedding and lm_head, as far as they are dense; a tied pair is one, the embedding."""
    pair = [view.embedding] if view.tied else [view.embedding, view.lm_head]
    return [named for named in pair if isinstance(named.module, nn.Linear | nn.Embedding)]


def dense_weights(view: ModelView) -> list[Named]:
    """Every weight that is not yet in integers; of a tied pair both."""
    leaves = [named for named in view.leaves() if isinstance(named.module, nn.Linear)]
    return leaves + [named for named in outer_weights(view) if named.role == "embedding"]


def priced_weights(view: ModelView) -> list[Named]:
    """Every weight that is decided on; a tied pair is one, the embedding."""
    inner = [named for named in dense_weights(view) if named.role in ("attention", "mlp")]
    return inner + outer_weights(view)


def _members(units: list[Unit]) -> set[str]:
    """Names of their weights."""
    return {part.named.name for unit in units for part in unit.priced[0].parts}


def may_go(
    view: ModelView,
    layer: LayerView,
    units: Sequence[Unit],
    prices: Mapping[str, float],
    resources: Sequence[Resource],
) -> None:
    """Let the units of a layer go together, if it has a price.

    Args:
        view: the model.
        layer: of it.
        units: all of the layer.
        prices: nats per token of leaving layers out, by full name.
        resources: that are limited.
    """
    if layer.name not in prices:
        return
    loss, costs = prices[layer.name], [-found.of_layer(view, layer) for found in resources]
    for unit in units:
        unit.left_out = LeftOut(layer.name, loss, tuple(costs))
        loss, costs = 0.0, [0.0] * len(costs)


def alternatives(
    unit: Unit, ties: Mapping[str, str] = NO_TIES, *, even: bool = False
) -> list[Alternative]:
    """What was priced, for the knapsack, and last that the unit goes with its layer.

    Args:
        unit: of the model.
        ties: weights of one, by full name, are stored alike.
        even: whether blocks that are as large now are to stay so.
    """
    return unit.alternatives(unit.priced, ties, even=even, estimates=False)


def hopes(unit: Unit, *, even: bool = False) -> list[Alternative]:
    """The same without ties of weights, with everything that was only estimated."""
    every = [*unit.priced, *unit.estimated]
    return unit.alternatives(every, NO_TIES, even=even, estimates=True)
