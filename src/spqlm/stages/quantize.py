"""Int8 quantisation of weights (SPQ, third stage)."""

from collections import Counter
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from spqlm.calibration.gather import CalibrationConfig
from spqlm.calibration.statistics import Statistics
from spqlm.calibration.work import Fit, Work
from spqlm.changes import Change, Plan
from spqlm.formats import Format
from spqlm.formats.int8 import Granularity, Int8
from spqlm.layerwise.finished_layers import FinishedLayers
from spqlm.model.mapped import is_bounded, release
from spqlm.model.tying import retie, tie_head
from spqlm.model.view import ModelView, Named, Role
from spqlm.modules.ops import module_bytes, with_weight
from spqlm.numerics.integer import LARGEST_SCALE, largest_code
from spqlm.progress import track
from spqlm.stages.base import NO_INPUTS, Inputs, Stage

Mode = Literal["per_tensor", "per_channel", "by_name", "by_percentile", "by_size"]


class Quantize(Stage):
    """Symmetric absmax int8. A tied embedding is quantised once and shared."""

    key: ClassVar[str] = "quantize"

    mode: Mode = Field(
        "per_channel",
        description="one scale per tensor, one per output channel, or a mixture: `by_name` (MLP "
        "per channel, attention and lm_head per tensor), `by_percentile` (layers with at least as "
        "many outputs as the given percentile of all linears per channel), `by_size` (the same "
        "with mean + 0.5 standard deviations)",
    )
    percentile: float = Field(50.0, ge=0, le=100, description="threshold of `by_percentile`")
    modules: tuple[Role, ...] = Field(
        ("attention", "mlp", "embedding", "lm_head"),
        min_length=1,
        description="which weights; a tied embedding goes with lm_head and the other way round",
    )

    @property
    def largest_weight(self) -> float:
        """In eight bits."""
        return LARGEST_SCALE * largest_code(8)

    @property
    def shapes_decide(self) -> bool:
        """Always."""
        return True

    def work(self, view: ModelView, text: CalibrationConfig) -> Work:
        """One look at each weight."""
        weights = [named.module.weight for named in self._linears(view) if _dense(named)]
        if _dense(view.embedding) and self._wants_embedding(view):
            weights.append(view.embedding.module.weight)
        # A tied pair is one.
        shapes = {id(weight): weight.shape for weight in weights}.values()
        return Work(fits=Counter(Fit(Int8(), "nearest", *shape) for shape in shapes))

    def plan(self, view: ModelView, statistics: Statistics) -> Plan:
        """Choose a granularity for every weight that is not yet in integers."""
        linears = [named for named in self._linears(view) if _dense(named)]
        threshold = self._threshold([named.module.out_features for named in linears])
        changes = [_change(named, self._granularity(named, threshold)) for named in linears]
        if _dense(view.embedding) and self._wants_embedding(view):
            alone: Granularity = "per_tensor" if self.mode == "per_tensor" else "per_channel"
            shared = self._granularity(view.lm_head, threshold) if view.tied else alone
            changes.append(_change(view.embedding, shared))
        per_channel = sum(change.format == Int8() for change in changes)
        summary = f"{len(changes)} weights to int8, {per_channel} of them per channel"
        if view.tied:
            changes = _count_once(view, changes)
        return Plan(stage=self.key, changes=changes, summary=summary)

    def _linears(self, view: ModelView) -> list[Named]:
        roles = set(self.modules) - {"embedding"}
        if view.tied and "embedding" in self.modules:
            roles.add("lm_head")
        return list(view.leaves(roles))

    def _wants_embedding(self, view: ModelView) -> bool:
        return "embedding" in self.modules or (view.tied and "lm_head" in self.modules)

    def _threshold(self, sizes: list[int]) -> float:
        if not sizes:
            return 0.0
        outputs = torch.tensor(sizes, dtype=torch.float64)
        if self.mode == "by_size":
            return float(outputs.mean() + 0.5 * outputs.std(correction=0))
        return float(torch.quantile(outputs, self.percentile / 100))

    def _granularity(self, named: Named, threshold: float) -> Granularity:
        if self.mode == "per_tensor" or self.mode == "per_channel":
            return self.mode
        if self.mode == "by_name":
            return "per_channel" if named.role == "mlp" else "per_tensor"
        return "per_channel" if named.module.out_features >= threshold else "per_tensor"

    @torch.no_grad()
    def apply(self, view: ModelView, plan: Plan, inputs: Inputs = NO_INPUTS) -> None:
        """Replace float weights by codes, one layer at a time."""
        tied, kept = view.tied, None
        if is_bounded() and plan.changes:
            # All codes together may be more than memory holds.
            kept = inputs.directory(view, self, inputs.statistics.windows)
        finished = FinishedLayers(view, kept)
        for change in track(plan.changes, "quantize"):
            if tied and change.module == view.lm_head.name:
                continue
            module = view.module(change.module)
            finished.replace(change.module, partial(_rounded, module, change.stored_as))
            release(module.parameters())
        if tied:
            tie_head(view)
        retie(view.model)


def _dense(named: Named) -> bool:
    """Whether its weight is in floats."""
    return isinstance(named.module, nn.Linear | nn.Embedding)


def _rounded(module: Any, form: Format) -> nn.Module:
    assert isinstance(form, Int8)
    return with_weight(module, form.nearest(module.weight.detach()))


def _change(named: Named, granularity: Granularity) -> Change:
    weight, form = named.module.weight, Int8(granularity=granularity)
    rows, columns = weight.shape
    bias = getattr(named.module, "bias", None)
    extra = 0 if bias is None else bias.numel() * bias.element_size()
    return Change(
        module=named.name,
        bytes_before=module_bytes(named.module),
        bytes_after=form.stored_bytes(rows, columns, weight.element_size()) + extra,
        format=form,
    )


def _count_once(view: ModelView, changes: list[Change]) -> list[Change]:
    """The tied head costs nothing of its own."""
    head = view.lm_head.name
    return [
        change.model_copy(update={"bytes_before": 0, "bytes_after": 0})
        if change.module == head
        else change
        for change in changes
    ]


STAGE = Quantize
