"""SVD of every layer at one share of its size, plain or whitened (SVD-LLM), to compare with."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from spq.calibration import Observation, Statistics
from spq.modules.low_rank_linear import LowRankLinear
from spq.modules.ops import module_bytes
from spq.numerics.low_rank import truncate
from spq.numerics.whitening import whitened_truncate
from spq.progress import track
from spq.stages.base import NO_INPUTS, Change, Inputs, Plan, Stage
from spq.view import ModelView, Named


class Factorize(Stage):
    """Replace every linear layer by two thin ones that hold the same share of its weights.

    Activations are those of the model before this stage, in every layer.
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

    def needs(self, view: ModelView) -> set[Observation]:
        """Outer products of what enters each layer, if they are whitened."""
        return {_observation(named) for named in self._dense(view)} if self.whiten else set()

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
            module=named.name, bytes_before=before, bytes_after=after, details={"rank": rank}
        )

    @torch.no_grad()
    def apply(self, view: ModelView, plan: Plan, inputs: Inputs = NO_INPUTS) -> None:
        """Factorise one layer at a time."""
        by_name = {named.name: named for named in self._dense(view)}
        for change in track(plan.changes, "factorize"):
            named = by_name[change.module]
            weight, rank = named.module.weight, change.details["rank"]
            if self.whiten:
                metric = inputs.statistics.outers[_observation(named)].mean
                left, right = whitened_truncate(weight, metric.to(weight.device), rank)
            else:
                left, right = truncate(weight, rank)
            factors = LowRankLinear.from_factors(
                left.to(weight.dtype), right.to(weight.dtype), named.module.bias
            )
            view.replace(named.name, factors)


def _observation(named: Named) -> Observation:
    return Observation(named.name, "input", "outer")


STAGE = Factorize
