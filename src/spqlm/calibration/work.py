"""What a stage will do, counted from shapes alone, so that its time can be told beforehand."""

from collections import Counter
from dataclasses import dataclass, field, fields
from typing import NamedTuple, Self

from torch import Tensor

from spqlm.formats import Format
from spqlm.formats.base import Rounding
from spqlm.formats.group_sparse import GroupSparse
from spqlm.numerics.group_pruning import Pattern, Saliency
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
        retraced: tokens through one decoder layer and back, where its weights are trained.
        fits: how many weights of each kind become codes.
        spectra: how many weights of each shape are decomposed.
    """

    read: int = 0
    heads: int = 0
    traced: int = 0
    moments: int = 0
    written: int = 0
    reread: int = 0
    retraced: int = 0
    fits: Counter[Fit | Pruning] = field(default_factory=Counter)
    spectra: Counter[Spectrum] = field(default_factory=Counter)

    def __add__(self, other: Self) -> "Work":
        """Both."""
        names = [part.name for part in fields(self)]
        return Work(**{name: getattr(self, name) + getattr(other, name) for name in names})
