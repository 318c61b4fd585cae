"""Eight bits: codes in [-127, 127] with one scale for each row, or one for all."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor
from torch.nn import functional

from spqlm.formats.base import Format, Layout, Rounding, StoredWeight
from spqlm.numerics import gptq, integer
from spqlm.numerics.metric import Metric

Granularity = Literal["per_channel", "per_tensor"]


@dataclass(eq=False)
class Int8Weight(StoredWeight):
    """scale · codes.

    Attributes:
        format: with the granularity.
        codes: int8 [rows, columns].
        scale: [rows] or [1], positive.
    """

    trained: ClassVar[tuple[str, ...]] = ("scale",)
    positive: ClassVar[tuple[str, ...]] = ("scale",)

    format: "Int8"
    codes: Tensor
    scale: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, columns = self.codes.shape
        return rows, columns

    def restore(self, dtype: torch.dtype | None = None) -> Tensor:
        """Codes times scale."""
        scale = self.scale if dtype is None else self.scale.to(dtype)
        return integer.dequantize(self.codes, scale)

    def take_rows(self, index: Tensor) -> Self:
        """Some outputs."""
        scale = self.scale if self.format.granularity == "per_tensor" else self.scale[index]
        return type(self)(self.format, self.codes[index], scale)

    def take_columns(self, index: Tensor) -> Self:
        """Some inputs."""
        return type(self)(self.format, self.codes[:, index].contiguous(), self.scale)

    def check(self) -> None:
        """Scales are positive."""
        if not bool((torch.isfinite(self.scale) & (self.scale > 0)).all()):
            raise ValueError("has a scale that is zero, negative or not finite")

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Codes are exact in every float dtype, so only the products are rounded."""
        # In float16 sums of x · code may leave the range where those of x · weight do not; and
        # Inductor knows the formula below by sight, see `kernels.operation`.
        if x.dtype == torch.float16 or torch.compiler.is_compiling():
            return super().product(x, bias)
        product = functional.linear(x, self.codes.to(x.dtype)) * self.scale.to(x.dtype)
        return product if bias is None else product + bias.to(x.dtype)

    def gradients(self, gradient: Tensor, restored: Tensor) -> tuple[Tensor]:
        """Σ_j gradient · code, over the row or over all."""
        rows = (gradient * self.codes.to(gradient.dtype)).sum(1, dtype=integer.wide(gradient.dtype))
        shared = self.format.granularity == "per_tensor"
        return ((rows.sum(0, keepdim=True) if shared else rows).to(self.scale.dtype),)

    def layout(self) -> Layout:
        """Rows of bytes."""
        groups = int(self.format.granularity == "per_channel")
        return Layout("int8", self.codes, self.scale, self.codes.shape[1], groups)

    def absorb(self, update: Tensor, generator: torch.Generator) -> Self:
        """New codes at the same scales, rounded at random."""
        weight = self.restore(torch.float32) + update
        codes = integer.quantize_stochastic(weight, self.scale, generator)
        return type(self)(self.format, codes, self.scale)


class Int8(Format):
    """Codes of eight bits."""

    fine: ClassVar[bool] = True
    int8_products: ClassVar[bool] = True

    granularity: Granularity = "per_channel"

    @property
    def code_bits(self) -> float:
        """Eight."""
        return 8

    @property
    def rows_apart(self) -> bool:
        """Where each has a scale."""
        return self.granularity == "per_channel"

    def stored_bytes(self, rows: int, columns: int, float_bytes: int) -> int:
        """A byte for each weight, and the scales."""
        return rows * columns + self._scales(rows) * float_bytes

    def _scales(self, rows: int) -> int:
        return rows if self.granularity == "per_channel" else 1

    def fit(self, weight: Tensor, metric: Metric, rounding: Rounding) -> Int8Weight:
        """The largest magnitude of a row, or of all, is the largest code."""
        if rounding == "nearest":
            return self.nearest(weight)
        scale = self._scale(weight)
        codes = gptq.round_int8(weight, metric.factor, scale)
        return Int8Weight(self, codes, scale)

    def nearest(self, weight: Tensor) -> Int8Weight:
        """`fit` without a metric, which absolute maxima do not ask for; of any float dtype."""
        scale = self._scale(weight)
        return Int8Weight(self, integer.quantize(weight, scale), scale)

    def _scale(self, weight: Tensor) -> Tensor:
        return integer.absmax_scale(weight, per_channel=self.granularity == "per_channel")

    def empty(self, rows: int, columns: int, dtype: torch.dtype | None) -> Int8Weight:
        """Without values."""
        codes = torch.empty(rows, columns, dtype=torch.int8)
        return Int8Weight(self, codes, torch.empty(self._scales(rows), dtype=dtype))

    def hold(self, tensors: Mapping[str, Tensor | None], columns: int) -> Int8Weight:
        """The tensors `codes` and `scale`."""
        codes, scale = tensors["codes"], tensors["scale"]
        assert codes is not None and scale is not None
        return Int8Weight(self, codes, scale)

    def describe(self, rows: int, columns: int) -> str:
        """With the granularity."""
        return f"int8 {self.granularity}"


FORMAT = Int8
