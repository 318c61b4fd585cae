"""Pruning of MLP neurons and attention heads by activation (SPQ, second stage)."""

from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from spqlm.calibration.gather import CalibrationConfig
from spqlm.calibration.needs import Needs
from spqlm.calibration.statistics import Moments, Observation, Statistics
from spqlm.calibration.work import Work
from spqlm.changes import Change, Cut, Plan
from spqlm.model.families import Prunable
from spqlm.model.view import LayerView, ModelView
from spqlm.modules.ops import module_bytes, select
from spqlm.numerics import importance
from spqlm.stages.base import NO_INPUTS, Inputs, Stage


class Prune(Stage):
    """Drop the units with the weakest activations, more of them in weaker layers."""

    key: ClassVar[str] = "prune"

    minimum: float = Field(0.0, ge=0, lt=1, description="p_min: share lost by the strongest layer")
    maximum: float = Field(0.05, ge=0, lt=1, description="p_max: share lost by the weakest layer")
    score: Literal["l1", "l2"] = Field(
        "l1", description="mean magnitude (l1) or root mean square (l2) of a unit's activations"
    )
    modules: tuple[Prunable, ...] = Field(
        ("mlp",),
        min_length=1,
        description="`mlp` neurons, `attention` heads (whole key/value groups), or both",
    )
    multiple_of: int = Field(32, ge=1, description="MLP widths are rounded to a multiple of this")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.modules)) < len(self.modules):
            raise ValueError("modules must be named once each")
        if self.minimum > self.maximum:
            raise ValueError(f"minimum {self.minimum} must not exceed maximum {self.maximum}")
        return self

    def needs(self, view: ModelView) -> Needs:
        """What leaves the scored MLP projection and what enters the attention output."""
        wanted = (
            _observation(layer, unit)
            for unit in self.modules
            for layer in view.layers
            if layer.prunable(unit)
        )
        return Needs(observations=frozenset(wanted))

    def work(self, view: ModelView, text: CalibrationConfig) -> Work:
        """Next to nothing beside what it observes: rows and columns are copied."""
        return Work()

    def plan(self, view: ModelView, statistics: Statistics) -> Plan:
        """Score every unit, spread the ratio over layers, choose what stays."""
        changes: list[Change] = []
        removed = {"mlp": 0, "attention": 0}
        for unit in self.modules:
            layers = [layer for layer in view.layers if layer.prunable(unit)]
            scores = [
                self._unit_scores(layer, unit, statistics.moments[_observation(layer, unit)])
                for layer in layers
            ]
            if not scores:
                continue
            layer_scores = torch.stack([score.mean() for score in scores])
            ratios = importance.layer_ratios(layer_scores, self.minimum, self.maximum)
            multiple_of = self.multiple_of if unit == "mlp" else 1
            for layer, score, ratio in zip(layers, scores, ratios.tolist(), strict=True):
                kept = importance.kept_count(len(score), ratio, multiple_of)
                if kept < len(score):
                    removed[unit] += len(score) - kept
                    changes += _changes(layer, unit, score, kept)
        summary = ", ".join(
            f"{removed[unit]} {'neurons' if unit == 'mlp' else 'key/value groups'} removed"
            for unit in self.modules
        )
        return Plan(stage=self.key, changes=changes, summary=summary)

    def _unit_scores(self, layer: LayerView, unit: Prunable, moments: Moments) -> Tensor:
        channels = moments.mean_absolute if self.score == "l1" else moments.mean_square
        if unit == "attention":
            channels = channels.reshape(layer.key_value_groups, -1).mean(1)
        return channels if self.score == "l1" else channels.sqrt()

    @torch.no_grad()
    def apply(self, view: ModelView, plan: Plan, inputs: Inputs = NO_INPUTS) -> None:
        """Drop rows and columns together, so that widths keep matching."""
        for change in plan.changes:
            module, cut = view.module(change.module), change.cut
            assert cut is not None
            index = cut.index.to(next(module.parameters()).device)
            view.replace(change.module, select(module, cut.side, index))
        for layer in view.layers:
            layer.settle_heads()


def _observation(layer: LayerView, unit: Prunable) -> Observation:
    if unit == "mlp":
        return Observation(layer.mlp_scored.name, "output")
    return Observation(layer.attention_output.name, "input")


def _changes(layer: LayerView, unit: Prunable, scores: Tensor, kept: int) -> list[Change]:
    """The layer's modules that change together, with what each loses."""
    strongest = set(importance.strongest(scores, kept).tolist())
    removed = [index for index in range(len(scores)) if index not in strongest]
    changes = []
    for named, side in layer.sides(unit):
        width = named.module.out_features if side == "output" else named.module.in_features
        cut = Cut(
            side=side,
            unit=unit,
            units=len(scores),
            channels_per_unit=int(width) // len(scores),
            kept=kept,
            removed=removed,
        )
        device = next(named.module.parameters()).device
        changes.append(
            Change(
                module=named.name,
                bytes_before=module_bytes(named.module),
                bytes_after=module_bytes(select(named.module, side, cut.index.to(device))),
                cut=cut,
            )
        )
    return changes


STAGE = Prune
