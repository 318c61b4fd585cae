"""What a stage will do, counted from shapes alone, so that its time can be told beforehand."""

from collections import Counter
from dataclasses import dataclass, field, fields
from typing import NamedTuple, Self

import torch
from torch import Tensor

from spqlm.formats import Format
from spqlm.formats.base import Rounding
from spqlm.formats.group_sparse import GroupSparse
from spqlm.numerics.elimination import elimination_order, refit
from spqlm.numerics.gptq import inverse_factor
from spqlm.numerics.group_pruning import Pattern, Saliency
from spqlm.numerics.low_rank import truncate, variances
from spqlm.numerics.metric import Metric


class Fit(NamedTuple):
    """A weight [rows, columns] that becomes codes."""

    form: Format
    rounding: Rounding
    rows: int
    columns: int

    def run(self, weight: Tensor, metric: Metric) -> None:
        """Do it to a weight of another shape, float32 [rows, columns]."""
        self.form.fit(weight, metric, self.rounding)


class Pruning(NamedTuple):
    """A weight [rows, columns] that loses a share of its groups, and whose others become codes."""

    form: GroupSparse
    sparsity: float
    saliency: Saliency
    pattern: Pattern
    rounds: int
    rows: int
    columns: int

    def run(self, weight: Tensor, metric: Metric) -> None:
        """Do it to a weight of another shape, float32 [rows, columns]."""
        rows, columns = weight.shape
        groups = columns // self.form.group_size
        kept = rows * max(round(groups * (1 - self.sparsity)), 1)
        form = self.form.model_copy(update={"kept": kept})
        form.prune(weight, metric, kind=self.saliency, pattern=self.pattern, rounds=self.rounds)


class Spectrum(NamedTuple):
    """A weight [rows, columns] whose singular values are found, and its vectors if asked for."""

    rows: int
    columns: int
    vectors: bool

    @property
    def side(self) -> int:
        """The smaller one of the weight."""
        return min(self.rows, self.columns)

    def scaled(self, scale: float) -> "Spectrum":
        """Of a weight of so large a share of both sides."""
        return self._replace(rows=int(self.rows * scale), columns=int(self.columns * scale))

    def run(self) -> None:
        """Do it to a random weight."""
        weight = torch.randn(self.rows, self.columns)
        if self.vectors:
            truncate(weight, max(min(weight.shape) // 2, 1))
        else:
            variances(weight)


class Inverse(NamedTuple):
    """The second moments [columns, columns] that a weight is rounded by: the factor of H⁻¹."""

    columns: int

    @property
    def side(self) -> int:
        """Of the matrix."""
        return self.columns

    def scaled(self, scale: float) -> "Inverse":
        """Of so large a share of the inputs."""
        return self._replace(columns=int(self.columns * scale))

    def run(self) -> None:
        """Do it to those of inputs that are unlike each other; it takes as long for all."""
        inverse_factor(torch.eye(self.columns))


class Elimination(NamedTuple):
    """A weight [rows, columns] that loses inputs, a few at a time, and is refitted at some sizes.

    Attributes:
        rows: of the weight.
        columns: of the weight.
        channels: inputs that leave as one.
        left: share of the inputs that stays at last.
        sizes: at which it is refitted.
    """

    rows: int
    columns: int
    channels: int
    left: float
    sizes: int

    @property
    def side(self) -> int:
        """The smaller one of the weight."""
        return min(self.rows, self.columns)

    def scaled(self, scale: float) -> "Elimination":
        """Of a weight of so large a share of both sides."""
        channels = max(int(self.channels * scale), 1)
        columns = max(int(self.columns * scale) // channels, 1) * channels
        rows = max(int(self.rows * scale), 1)
        return self._replace(rows=rows, columns=columns, channels=channels)

    def run(self) -> None:
        """Do it to a random weight."""
        weight = torch.randn(self.rows, self.columns)
        hessian = torch.eye(self.columns)
        gone = int(self.columns // self.channels * (1 - self.left))
        elimination_order(weight, hessian, torch.ones(self.rows), gone, self.channels)
        kept = torch.arange(max(int(self.columns * (1 + self.left) / 2), 1))
        for _ in range(self.sizes):
            refit(weight, hessian, kept)


Decomposition = Spectrum | Elimination | Inverse


@dataclass(frozen=True)
class Work:
    """Counts of what takes time.

    Attributes:
        read: tokens through the decoder layers.
        heads: tokens through the lm_head as well.
        traced: tokens through the whole model and, from their loss, back.
        moments: tokens whose second moments are summed at every weight of the decoder layers.
        written: sequences of calibration text that the model writes itself.
        reread: tokens through one decoder layer.
        retraced: tokens through one decoder layer and back, where its codes are trained.
        layer_steps: steps of training the codes of one decoder layer.
        tuned: tokens through the whole model and back, where scales are trained.
        adapted: the same, where LoRA adapters are.
        compared: tokens whose predictions by two models are compared.
        fits: how many weights of each kind become codes.
        spectra: how many matrices of each shape are decomposed, or lose inputs.
    """

    read: int = 0
    heads: int = 0
    traced: int = 0
    moments: int = 0
    written: int = 0
    reread: int = 0
    retraced: int = 0
    layer_steps: int = 0
    tuned: int = 0
    adapted: int = 0
    compared: int = 0
    fits: Counter[Fit | Pruning] = field(default_factory=Counter)
    spectra: Counter[Decomposition] = field(default_factory=Counter)

    def __add__(self, other: Self) -> "Work":
        """Both."""
        names = [part.name for part in fields(self)]
        return Work(**{name: getattr(self, name) + getattr(other, name) for name in names})
