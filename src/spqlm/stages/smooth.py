"""Factors that even out the channels before activations are rounded (SmoothQuant)."""

from collections import Counter
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from spqlm.calibration.gather import CalibrationConfig
from spqlm.calibration.needs import Needs
from spqlm.calibration.statistics import Statistics
from spqlm.calibration.work import Work
from spqlm.changes import Change, Plan, Scaled
from spqlm.layerwise.links import Entered, Link, links
from spqlm.layerwise.loop import LayerLoop, Step
from spqlm.layerwise.walk import evaluating
from spqlm.model.view import ModelView
from spqlm.modules.ops import module_bytes
from spqlm.numerics.smoothing import channels_of, exponents, largest_of
from spqlm.stages.base import NO_INPUTS, Inputs, Stage

NOT_LINKED = "whose inputs no known norm or projection writes alone"
NOT_ALONE = "in layers that cannot be run by themselves"
NOT_EXACT = "where factors would change what the layer gives"
EVEN = "whose channels are even already"


class Smooth(Stage):
    """Divide the channels that linear layers read by powers of two, and multiply their columns.

    What the model computes stays the same, bit for bit: each layer is tried on text, and what
    would change it is left alone. Inputs and weights are then easier to round to int8.
    """

    key: ClassVar[str] = "smooth"

    strength: float = Field(
        0.5,
        ge=0,
        le=1,
        description="α of SmoothQuant (arXiv 2211.10438, equation 4): how much of the difference "
        "between channels the weights take over",
    )
    modules: tuple[Literal["attention", "mlp"], ...] = Field(
        ("attention", "mlp"), min_length=1, description="which linear layers"
    )

    def needs(self, view: ModelView) -> Needs:
        """Windows that run through layer by layer."""
        return Needs(windows=True)

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
        for step in LayerLoop(view, statistics.windows, self.key, frozen=True):
            with evaluating(view.model):
                changes += self._layer(view, step, left)
        smoothed = sum(len(c.scaled.readers) for c in changes if c.scaled is not None)
        every = smoothed + sum(left.values())
        words = f"inputs of {smoothed} of {every} weights smoothed"
        if left:
            reasons = [f"{count} {reason}" for reason, count in sorted(left.items())]
            words += f"; left alone: {', '.join(reasons)}"
        return Plan(stage=self.key, changes=changes, summary=words)

    def _layer(self, view: ModelView, step: Step, left: Counter[str]) -> list[Change]:
        wanted = {named.name for named in step.layer.linears if named.role in self.modules}
        if not step.trainable:
            left[NOT_ALONE] += len(wanted)
            return []
        states, entered = step.states[:1].clone(), Entered()
        with entered.watching(view, step.layer):
            step.observe(entered)
        before = step.run_on(states)
        changes = []
        for link in links(view, step.layer, entered):
            names = {named.name for named in link.readers}
            if not names <= wanted:
                continue
            wanted -= names
            change = self._change(view, link, entered)
            if change is None:
                left[EVEN] += len(names)
            elif torch.equal(step.run_on(states, _inside(view, step, change)), before):
                changes.append(change)
            else:
                left[NOT_EXACT] += len(names)
        if wanted:
            left[NOT_LINKED] += len(wanted)
        return changes

    def _change(self, view: ModelView, link: Link, entered: Entered) -> Change | None:
        """None where channels are as even as powers of two can make them."""
        channel = link.channel.to(view.model.device)
        weights = [named.module.weight.detach().abs().amax(0).float() for named in link.readers]
        inputs = entered.largest[link.readers[0].name]
        found = exponents(
            largest_of(inputs, channel),
            largest_of(torch.stack(weights).amax(0), channel),
            self.strength,
        )
        if not bool(found.any()):
            return None
        held = module_bytes(view.module(link.writer))
        scaled = Scaled(
            readers=[named.name for named in link.readers],
            exponents=found.int().tolist(),
            width=link.width,
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
