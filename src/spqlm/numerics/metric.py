"""What an error of a weight costs: the metric that weights are fitted and priced in."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from spqlm.numerics import gptq

# Of a weight, that are copied at once.
SOME_ROWS = 4096


@dataclass(frozen=True)
class Metric:
    """What an error of a weight costs: ½ Σ_terms Σ_i o_i (ΔW H ΔWᵀ)_ii nats per token.

    A linear layer has one term; a tied embedding has one as the output projection and one as the
    lookup table.

    Attributes:
        terms: pairs of H [columns, columns] and o [rows].
        damping: of H where it is inverted, see `gptq.damped`.
        whole: the metric of all rows, where this is that of some.
        noise: E[w e eᵀ] / E[w] [columns, columns], where e is what rounding to int8 does to an
            input; None where that was not asked for. Of a linear layer's one term.
    """

    terms: list[tuple[Tensor, Tensor]]
    damping: float = gptq.DAMPING
    whole: "Metric | None" = None
    noise: Tensor | None = None

    @cached_property
    def hessian(self) -> Tensor:
        """One matrix for all rows, to round by; rows differ in weight only."""
        if self.whole is not None:
            return self.whole.hessian
        (hessian, output), *others = self.terms
        total = hessian * output.mean()
        for hessian, output in others:
            total += hessian * output.mean()
        return total

    @cached_property
    def factor(self) -> Tensor:
        """Of the matrix to round by, see `gptq.inverse_factor`: all that rounds shares it."""
        if self.whole is not None:
            return self.whole.factor
        return gptq.inverse_factor(self.hessian, self.damping)[0]

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

    def noise_losses(self, weight: Tensor) -> Tensor:
        """What rounding the inputs of a stored weight costs, by row, float32 [rows].

        Beside its own error: the two are taken to have nothing to do with each other.
        """
        assert self.noise is not None
        return gptq.row_losses(weight, self.noise, self.output)

    def energy(self, weight: Tensor) -> Tensor:
        """What the rows of a weight weigh entry by entry.

        Args:
            weight: floats [rows, columns]; some rows at a time are made float32.

        Returns:
            float32 [rows].
        """
        diagonals = torch.stack([h.diagonal() for h, _ in self.terms], dim=1)
        outputs = torch.stack([o for _, o in self.terms], dim=1)
        squares = [some.float().square() @ diagonals for some in weight.split(SOME_ROWS)]
        return 0.5 * (outputs * torch.cat(squares)).sum(1)

    def rows(self, index: Tensor) -> "Metric":
        """For the outputs in `index` alone, rounded by the same matrix as all of them."""
        terms = [(h, o[index]) for h, o in self.terms]
        return replace(self, terms=terms, whole=self.whole or self)

    def columns(self, index: Tensor) -> "Metric":
        """For the inputs in `index` alone."""
        noise = None if self.noise is None else self.noise[index][:, index]
        terms = [(h[index][:, index], o) for h, o in self.terms]
        return replace(self, terms=terms, whole=None, noise=noise)
