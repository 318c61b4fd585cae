"""What an error of a weight costs: the metric that weights are fitted and priced in."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from spqlm.numerics import gptq


@dataclass(frozen=True)
class Metric:
    """What an error of a weight costs: ½ Σ_terms Σ_i o_i (ΔW H ΔWᵀ)_ii nats per token.

    A linear layer has one term; a tied embedding has one as the output projection and one as the
    lookup table.

    Attributes:
        terms: pairs of H [columns, columns] and o [rows].
        damping: of H where it is inverted, see `gptq.damped`.
    """

    terms: list[tuple[Tensor, Tensor]]
    damping: float = gptq.DAMPING

    @cached_property
    def hessian(self) -> Tensor:
        """One matrix for all rows, to round by; rows differ in weight only."""
        weighted = [hessian * output.mean() for hessian, output in self.terms]
        return torch.stack(weighted).sum(0)

    @cached_property
    def output(self) -> Tensor:
        """One o for all terms, [rows]."""
        return torch.stack([output for _, output in self.terms]).sum(0)

    def loss(self, error: Tensor) -> float:
        """Nats per token."""
        return float(self.row_losses(error).sum())

    def row_losses(self, error: Tensor) -> Tensor:
        """What the error of each row costs, float32 [rows]."""
        return torch.stack([gptq.row_losses(error, h, o) for h, o in self.terms]).sum(0)

    def rows(self, index: Tensor) -> "Metric":
        """For the outputs in `index` alone."""
        return replace(self, terms=[(h, o[index]) for h, o in self.terms])

    def columns(self, index: Tensor) -> "Metric":
        """For the inputs in `index` alone."""
        return replace(self, terms=[(h[index][:, index], o) for h, o in self.terms])
