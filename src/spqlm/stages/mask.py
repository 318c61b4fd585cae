"""Unstructured and 2:4 sparsity by SparseGPT or Wanda, to compare with."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from spqlm.calibration.needs import Needs
from spqlm.calibration.statistics import Statistics
from spqlm.changes import Change, Plan, Zeroed
from spqlm.errors import SpqError
from spqlm.layerwise.finished_layers import FinishedLayers
from spqlm.layerwise.loop import LayerLoop, replace_layer_by_layer
from spqlm.model.soundness import fitting
from spqlm.model.view import ModelView, Named
from spqlm.modules.ops import linear_from, module_bytes
from spqlm.numerics import sparse
from spqlm.stages.base import NO_INPUTS, Inputs, Stage

GROUPS = {"unstructured": None, "2:4": (2, 4)}


class Mask(Stage):
    """Zero single weights. The file does not shrink: weights are stored with their zeros.

    The plan says how many values are not zero, and its summary what a packed form would take: these
    with a bit for every place, or two for every value of 2:4. Each decoder layer is pruned by what
    enters it behind those pruned before it.
    """

    key: ClassVar[str] = "mask"

    method: Literal["sparsegpt", "wanda"] = Field(
        "sparsegpt", description="`sparsegpt` refits the weights that stay, `wanda` does not"
    )
    sparsity: float = Field(0.5, ge=0, lt=1, description="share of each weight that becomes zero")
    pattern: Literal["unstructured", "2:4"] = Field(
        "unstructured", description="`2:4` zeroes two of every four, whatever the sparsity"
    )
    modules: tuple[Literal["attention", "mlp"], ...] = Field(
        ("attention", "mlp"), min_length=1, description="which linear layers"
    )
    damping: float = Field(
        0.01, ge=0, description="of `sparsegpt`, as a share of the median second moment"
    )

    @property
    def shapes_decide(self) -> bool:
        """Always."""
        return True

    def needs(self, view: ModelView) -> Needs:
        """Windows that run through layer by layer."""
        return Needs(windows=True)

    def _dense(self, view: ModelView) -> list[Named]:
        return [n for n in view.linears(self.modules) if isinstance(n.module, nn.Linear)]

    def plan(self, view: ModelView, statistics: Statistics) -> Plan:
        """Count what stays; no byte is saved."""
        changes = [self._change(named) for named in self._dense(view)]
        packed = sum(self._packed(view.module(c.module).weight, c) for c in changes)
        summary = (
            f"{len(changes)} weights {self.pattern} sparse by {self.method},"
            f" {packed / 1e6:.1f} MB if packed"
        )
        return Plan(stage=self.key, changes=changes, summary=summary)

    def _change(self, named: Named) -> Change:
        weight = named.module.weight
        if self.pattern == "2:4" and weight.shape[1] % 4:
            raise SpqError(
                f"2:4 needs a width that 4 divides; {named.name!r} has {weight.shape[1]}"
            )
        share = 0.5 if self.pattern == "2:4" else self.sparsity
        kept = weight.numel() - int(weight.numel() * share)
        zeroed = Zeroed(entries=weight.numel(), nonzeros=kept)
        held = module_bytes(named.module)
        return Change(module=named.name, bytes_before=held, bytes_after=held, zeroed=zeroed)

    def _packed(self, weight: Tensor, change: Change) -> int:
        assert change.zeroed is not None
        kept, entries = change.zeroed.nonzeros, change.zeroed.entries
        return sparse.packed_bytes(kept, entries, weight.element_size(), self.pattern)

    @torch.no_grad()
    def apply(self, view: ModelView, plan: Plan, inputs: Inputs = NO_INPUTS) -> None:
        """Prune one decoder layer at a time."""
        names = {change.module for change in plan.changes}
        windows = inputs.statistics.windows
        finished = FinishedLayers(view, inputs.directory(view, self, windows))
        loop = LayerLoop(view, windows, self.key, sink=finished)
        replace_layer_by_layer(loop, names, self._pruned)

    def _pruned(self, named: Named, metric: Tensor) -> nn.Linear:
        weight, group = named.module.weight, GROUPS[self.pattern]
        if self.method == "wanda":
            pruned = sparse.wanda(weight, metric, self.sparsity, group)
        else:
            largest = torch.finfo(weight.dtype).max
            with fitting(named.name):
                pruned = sparse.sparsegpt(
                    weight, metric, self.sparsity, group, self.damping, largest
                )
        return linear_from(pruned.to(weight.dtype), named.module.bias)


STAGE = Mask
