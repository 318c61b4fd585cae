"""SVD of linear layers at retained variance (SPQ, first stage)."""

from collections import Counter
from functools import partial
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from spqlm.calibration.gather import CalibrationConfig
from spqlm.calibration.statistics import Statistics
from spqlm.calibration.work import Decomposition, Spectrum, Work
from spqlm.changes import Change, Plan
from spqlm.formats.low_rank import LowRank, of_factors
from spqlm.layerwise.finished_layers import FinishedLayers
from spqlm.model.view import ModelView
from spqlm.modules.low_rank_linear import LowRankLinear
from spqlm.modules.ops import dense_weight, module_bytes, with_weight
from spqlm.numerics import low_rank
from spqlm.progress import track
from spqlm.stages.base import NO_INPUTS, Inputs, Stage


class Svd(Stage):
    """Replace W by the product of two thin matrices where that saves bytes."""

    key: ClassVar[str] = "svd"

    variance: float = Field(
        0.96, gt=0, le=1, description="τ: share of the squared singular values to retain"
    )
    modules: tuple[Literal["attention", "mlp"], ...] = Field(
        ("attention",), min_length=1, description="which linear layers to factorise"
    )
    multiple_of: int = Field(
        32, ge=1, description="ranks are rounded up to a multiple of this where that still saves"
    )
    singular_values_in: low_rank.SingularValuesIn = Field(
        "right",
        description="the factor that carries the singular values: `left` as published, `right` "
        "so that int8 scales per row absorb them",
    )

    def work(self, view: ModelView, text: CalibrationConfig) -> Work:
        """Every weight is decomposed; how many are factorised afterwards, their values decide.

        Counted as if half of them were.
        """
        shapes = Counter((*named.module.weight.shape,) for named in view.linears(self.modules))
        spectra: Counter[Decomposition] = Counter()
        for (rows, columns), count in shapes.items():
            spectra[Spectrum(rows, columns, False)] += count
            spectra[Spectrum(rows, columns, True)] += count // 2
        return Work(spectra=spectra)

    def plan(self, view: ModelView, statistics: Statistics) -> Plan:
        """Pick ranks from each layer's whole spectrum (values only, no vectors)."""
        linears = view.linears(self.modules)
        changes = []
        for named in track(linears, "svd: spectra"):
            module = named.module
            if isinstance(module, LowRankLinear):
                continue
            weight = dense_weight(module)
            out_features, in_features = weight.shape
            needed = low_rank.rank_for_variance(low_rank.variances(weight), self.variance)
            rank = low_rank.snap_rank(needed, in_features, out_features, self.multiple_of)
            if rank is None:
                continue
            removed = in_features * out_features - rank * (in_features + out_features)
            before = module_bytes(module)
            kept = weight.numel() - removed
            bias = 0 if module.bias is None else module.bias.numel()
            after = (kept + bias) * weight.element_size()
            if after < before:
                changes.append(
                    Change(
                        module=named.name,
                        bytes_before=before,
                        bytes_after=after,
                        format=LowRank(rank=rank, factor=None),
                    )
                )
        summary = f"{len(changes)} of {len(linears)} layers factorised at variance {self.variance}"
        return Plan(stage=self.key, changes=changes, summary=summary)

    @torch.no_grad()
    def apply(self, view: ModelView, plan: Plan, inputs: Inputs = NO_INPUTS) -> None:
        """Compute the leading vectors of the layers that were chosen and swap those in."""
        if not plan.changes:
            return
        # Ranks follow from weights and settings.
        kept = inputs.directory(view, self, inputs.statistics.windows)
        finished = FinishedLayers(view, kept)
        for change in track(plan.changes, "svd: factors"):
            finished.replace(change.module, partial(self._factors, view, change))

    def _factors(self, view: ModelView, change: Change) -> nn.Module:
        assert isinstance(change.format, LowRank)
        module, rank = view.module(change.module), change.format.rank
        factors = low_rank.truncate(dense_weight(module), rank, self.singular_values_in)
        return with_weight(module, of_factors(*factors))


STAGE = Svd
