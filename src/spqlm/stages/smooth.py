"""Factors that even out the channels before activations are rounded (SmoothQuant)."""

from collections import Counter
from collections.abc import Mapping
from operator import itemgetter
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from spqlm.calibration.gather import CalibrationConfig
from spqlm.calibration.needs import Needs
from spqlm.calibration.sensitivity import Sensitivity
from spqlm.calibration.statistics import Statistics
from spqlm.calibration.work import Work
from spqlm.changes import Change, Plan, Scaled
from spqlm.layerwise.links import Entered, Link, links
from spqlm.layerwise.loop import LayerLoop, Step
from spqlm.layerwise.walk import evaluating
from spqlm.model.view import ModelView, Named
from spqlm.modules.ops import module_bytes
from spqlm.numerics.smoothing import (
    Reader,
    channels_of,
    exponents,
    fitted_exponents,
    int8_loss,
    largest_of,
)
from spqlm.stages.base import NO_INPUTS, Inputs, Stage

NOT_LINKED = "whose inputs no known norm or projection writes alone"
NOT_ALONE = "in layers that cannot be run by themselves"
NOT_EXACT = "where factors would change what the layer gives"
EVEN = "whose channels are even already"
NO_GAIN = "that no factors serve"
# α that are tried where none is given; a descent begins at the best.
STRENGTHS = tuple(step / 20 for step in range(4, 20, 2))
# Tokens that they are tried on, evenly spread over the text.
TRIED_TOKENS = 1024


class Smooth(Stage):
    """Divide the channels that linear layers read by powers of two, and multiply their columns.

    What the model computes stays the same, bit for bit: each layer is tried on text, and what
    would change it is left alone. Inputs and weights are then easier to round to int8.
    """

    key: ClassVar[str] = "smooth"

    strength: float | None = Field(
        None,
        ge=0,
        le=1,
        description="α of SmoothQuant (arXiv 2211.10438, equation 4): how much of the difference "
        "between channels the weights take over; null searches, for weights that read the same, "
        "the factors that cost them the fewest nats in int8 with int8 inputs",
    )
    modules: tuple[Literal["attention", "mlp"], ...] = Field(
        ("attention", "mlp"), min_length=1, description="which linear layers"
    )

    def needs(self, view: ModelView) -> Needs:
        """Windows that run through layer by layer; where α is searched, gradients too."""
        if self.strength is not None:
            return Needs(windows=True)
        return Needs(sensitivities=frozenset(named.name for named in self._linears(view)))

    def _linears(self, view: ModelView) -> list[Named]:
        return [n for n in view.linears(self.modules) if isinstance(n.module, torch.nn.Linear)]

    def savings(self, view: ModelView) -> tuple[int, int]:
        """None."""
        return 0, 0

    def work(self, view: ModelView, text: CalibrationConfig) -> Work:
        """The text runs through once."""
        return Work(read=text.windows * text.context)

    def plan(self, view: ModelView, statistics: Statistics) -> Plan:
        """Choose factors by what enters each weight, and try them on a window of the text."""
        changes: list[Change] = []
        left: Counter[str] = Counter()
        sensitivities = statistics.sensitivities if self.strength is None else None
        for step in LayerLoop(view, statistics.windows, self.key, frozen=True):
            with evaluating(view.model):
                changes += self._layer(view, step, left, sensitivities)
        smoothed = sum(len(c.scaled.readers) for c in changes if c.scaled is not None)
        every = smoothed + sum(left.values())
        words = f"inputs of {smoothed} of {every} weights smoothed"
        if left:
            reasons = [f"{count} {reason}" for reason, count in sorted(left.items())]
            words += f"; left alone: {', '.join(reasons)}"
        gains = [c.scaled.gain for c in changes if c.scaled and c.scaled.gain is not None]
        if gains:
            words += f"; that saves {sum(gains):.4f} nats where all are in int8 with int8 inputs"
        return Plan(stage=self.key, changes=changes, summary=words)

    def _layer(
        self,
        view: ModelView,
        step: Step,
        left: Counter[str],
        sensitivities: Mapping[str, Sensitivity] | None,
    ) -> list[Change]:
        wanted = {named.name for named in step.layer.linears if named.role in self.modules}
        if not step.trainable:
            left[NOT_ALONE] += len(wanted)
            return []
        every = 0 if sensitivities is None else max(step.states[..., 0].numel() // TRIED_TOKENS, 1)
        states, entered = step.states[:1].clone(), Entered(every=every)
        with entered.watching(view, step.layer):
            step.observe(entered)
        before = step.run_on(states)
        changes = []
        for link in links(view, step.layer, entered):
            names = {named.name for named in link.readers}
            if not names <= wanted:
                continue
            wanted -= names
            change = self._change(view, link, entered, sensitivities)
            if change is None:
                left[EVEN if sensitivities is None else NO_GAIN] += len(names)
            elif torch.equal(step.run_on(states, _inside(view, step, change)), before):
                changes.append(change)
            else:
                left[NOT_EXACT] += len(names)
        if wanted:
            left[NOT_LINKED] += len(wanted)
        return changes

    def _change(
        self,
        view: ModelView,
        link: Link,
        entered: Entered,
        sensitivities: Mapping[str, Sensitivity] | None,
    ) -> Change | None:
        """None where channels are as even as powers of two can make them, or that saves nothing."""
        channel = link.channel.to(view.model.device)
        weights = [named.module.weight.detach().abs().amax(0).float() for named in link.readers]
        largest = largest_of(entered.largest[link.readers[0].name], channel)
        weighed = largest_of(torch.stack(weights).amax(0), channel)
        if self.strength is not None:
            found, gain = exponents(largest, weighed, self.strength), None
        else:
            assert sensitivities is not None
            tried = [exponents(largest, weighed, strength) for strength in STRENGTHS]
            found, gain = _best(link, entered, sensitivities, tried)
        if not bool(found.any()):
            return None
        held = module_bytes(view.module(link.writer))
        scaled = Scaled(
            readers=[named.name for named in link.readers],
            exponents=found.int().tolist(),
            width=link.width,
            gain=gain,
        )
        return Change(module=link.writer, bytes_before=held, bytes_after=held, scaled=scaled)

    @torch.no_grad()
    def apply(self, view: ModelView, plan: Plan, inputs: Inputs = NO_INPUTS) -> None:
        """Multiply weights."""
        for change in plan.changes:
            for name, parameter in _parameters(view, change).items():
                module, _, own = name.rpartition(".")
                old = getattr(view.module(module), own)
                # Not in place: another model may share it.
                new = torch.nn.Parameter(parameter, old.requires_grad)
                setattr(view.module(module), own, new)


def _best(
    link: Link, entered: Entered, sensitivities: Mapping[str, Sensitivity], tried: list[Tensor]
) -> tuple[Tensor, float]:
    """The exponents that cost the readers the least in int8, and how much less than none do.

    From the best of those that are tried, a descent looks for better ones.
    """
    places, rows = entered.sample(link.readers[0].name)
    channel, places = link.channel.to(rows.device), places.to(rows.device)
    readers = [
        Reader(
            named.module.weight.detach().float(),
            sensitivities[named.name].norms.flatten()[places],
            sensitivities[named.name].output,
        )
        for named in link.readers
    ]

    def loss(found: Tensor) -> float:
        return sum(int8_loss(reader, rows, found[channel]) for reader in readers)

    without = torch.zeros_like(tried[0])
    losses = [(loss(found), found) for found in (without, *tried)]
    least, best = min(losses, key=itemgetter(0))
    fitted = fitted_exponents(readers, rows, channel, best)
    lower = loss(fitted)
    if lower < least:
        least, best = lower, fitted
    return best, losses[0][0] - least


def _parameters(view: ModelView, change: Change) -> dict[str, Tensor]:
    """Those that a change alters, as they are after it, by full name."""
    assert change.scaled is not None
    writer, width = view.module(change.module), change.scaled.width
    factors = torch.exp2(torch.tensor(change.scaled.exponents, dtype=torch.float32))
    factors = factors.to(writer.weight.device, writer.weight.dtype)
    found = {}
    for own in ("weight", "bias"):
        old = getattr(writer, own, None)
        if old is not None:
            found[f"{change.module}.{own}"] = old / factors.view(-1, *[1] * (old.ndim - 1))
    for reader in change.scaled.readers:
        old = view.module(reader).weight
        channel = channels_of(old.shape[1], len(factors), width).to(old.device)
        found[f"{reader}.weight"] = old * factors[channel].to(old.dtype)
    return found


def _inside(view: ModelView, step: Step, change: Change) -> Mapping[str, Tensor]:
    """The same by their names in the layer."""
    found = _parameters(view, change)
    return {name.removeprefix(f"{step.layer.name}."): tensor for name, tensor in found.items()}


STAGE = Smooth
