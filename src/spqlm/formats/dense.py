"""Floating point, as the source has it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from spqlm.formats.base import Format, Layout, Rounding, StoredWeight
from spqlm.numerics.metric import Metric


@dataclass(eq=False)
class DenseWeight(StoredWeight):
    """A matrix of floats.

    Attributes:
        format: says that.
        weight: [rows, columns].
    """

    trained: ClassVar[tuple[str, ...]] = ("weight",)

    format: "Dense"
    weight: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, columns = self.weight.shape
        return rows, columns

    def restore(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight itself, or a cast of it."""
        return self.weight if dtype is None else self.weight.to(dtype)

    def take_rows(self, index: Tensor) -> "Self":
        """Some outputs."""
        return type(self)(self.format, self.weight[index])

    def take_columns(self, index: Tensor) -> "Self":
        """Some inputs."""
        return type(self)(self.format, self.weight[:, index])

    def absorb(self, update: Tensor, generator: torch.Generator) -> "Self":
        """Summed in float32; nothing is rounded at random."""
        return type(self)(self.format, (self.weight.float() + update).to(self.weight.dtype))

    def layout(self) -> Layout:
        """Rows of floats."""
        return Layout("dense", self.weight, None, self.weight.shape[1])


class Dense(Format):
    """Floats in the model's own dtype."""

    fine: ClassVar[bool] = True

    @property
    def code_bits(self) -> None:
        """Those of the dtype."""
        return None

    def stored_bytes(self, rows: int, columns: int, float_bytes: int) -> int:
        """A float for each weight."""
        return rows * columns * float_bytes

    def fit(self, weight: Tensor, metric: Metric, rounding: Rounding) -> DenseWeight:
        """The weight as it is."""
        return DenseWeight(self, weight)

    def empty(self, rows: int, columns: int, dtype: torch.dtype | None) -> DenseWeight:
        """Without values."""
        return DenseWeight(self, torch.empty(rows, columns, dtype=dtype))

    def hold(self, tensors: Mapping[str, Tensor | None], columns: int) -> DenseWeight:
        """The tensor `weight`."""
        weight = tensors["weight"]
        assert weight is not None
        return DenseWeight(self, weight)

    def describe(self, rows: int, columns: int) -> str:
        """One word."""
        return "dense"


FORMAT = Dense
