"""SVD of every layer at one share of its size, plain or whitened (SVD-LLM), to compare with."""

from functools import partial
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from spqlm.calibration.needs import Needs
from spqlm.calibration.statistics import Statistics
from spqlm.changes import Change, Plan
from spqlm.formats.low_rank import LowRank, of_factors
from spqlm.layerwise.finished_layers import FinishedLayers
from spqlm.layerwise.loop import LayerLoop, replace_layer_by_layer
from spqlm.model.view import ModelView, Named
from spqlm.modules.ops import module_bytes, with_weight
from spqlm.numerics.low_rank import truncate, weighted_basis, weighted_truncate
from spqlm.progress import track
from spqlm.stages.base import NO_INPUTS, Inputs, Stage


class Factorize(Stage):
    """Replace every linear layer by two thin ones that hold the same share of its weights.

    Where they are whitened, by what enters each decoder layer behind those factorised before it.
    """

    key: ClassVar[str] = "factorize"

    keep: float = Field(0.5, gt=0, lt=1, description="share of the parameters that stays")
    whiten: bool = Field(
        True,
        description="truncate in the metric of the inputs, E[x xᵀ] (SVD-LLM, arXiv 2403.07378); "
        "false is the plain SVD",
    )
    modules: tuple[Literal["attention", "mlp"], ...] = Field(
        ("attention", "mlp"), min_length=1, description="which linear layers"
    )

    @property
    def shapes_decide(self) -> bool:
        """Always."""
        return True

    def needs(self, view: ModelView) -> Needs:
        """Windows that run through layer by layer, for whitening."""
        return Needs(windows=self.whiten)

    def _dense(self, view: ModelView) -> list[Named]:
        return [n for n in view.linears(self.modules) if isinstance(n.module, nn.Linear)]

    def plan(self, view: ModelView, statistics: Statistics) -> Plan:
        """The rank follows from the share; it is rounded down, to no less than 1."""
        changes = [self._change(named) for named in self._dense(view)]
        changes = [change for change in changes if change.bytes_after < change.bytes_before]
        kind = "whitened" if self.whiten else "plain"
        summary = f"{len(changes)} layers factorised at {self.keep:.1%} of their size, {kind}"
        return Plan(stage=self.key, changes=changes, summary=summary)

    def _change(self, named: Named) -> Change:
        weight = named.module.weight
        both = sum(weight.shape)
        rank = max(int(self.keep * weight.numel() / both), 1)
        before = module_bytes(named.module)
        after = before - (weight.numel() - rank * both) * weight.element_size()
        return Change(
            module=named.name,
            bytes_before=before,
            bytes_after=after,
            format=LowRank(rank=rank, factor=None),
        )

    @torch.no_grad()
    def apply(self, view: ModelView, plan: Plan, inputs: Inputs = NO_INPUTS) -> None:
        """Factorise one layer at a time."""
        ranks = {change.module: _rank(change) for change in plan.changes}

        def whitened(named: Named, metric: Tensor) -> nn.Module:
            weight, outputs = named.module.weight, torch.ones(named.module.out_features)
            outputs = outputs.to(weight.device)
            _, basis = weighted_basis(weight, metric, outputs)
            return _pair(named, weighted_truncate(weight, basis, outputs, ranks[named.name]))

        def plain(named: Named) -> nn.Module:
            return _pair(named, truncate(named.module.weight, ranks[named.name]))

        windows = inputs.statistics.windows
        finished = FinishedLayers(view, inputs.directory(view, self, windows))
        if self.whiten:
            loop = LayerLoop(view, windows, self.key, sink=finished)
            replace_layer_by_layer(loop, ranks, whitened)
            return
        for named in track(self._dense(view), self.key):
            if named.name in ranks:
                finished.replace(named.name, partial(plain, named))


def _rank(change: Change) -> int:
    assert isinstance(change.format, LowRank)
    return change.format.rank


def _pair(named: Named, factors: tuple[Tensor, Tensor]) -> nn.Module:
    return with_weight(named.module, of_factors(*factors))


STAGE = Factorize
