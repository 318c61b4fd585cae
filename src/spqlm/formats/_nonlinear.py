"""Codes of few bits for levels that are denser near zero, with a scale for each group of inputs."""

from collections.abc import Mapping
from functools import cache
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from spqlm.formats._blocks import BlockWeight, InBlocks
from spqlm.formats._shared_scales import SharedScaleWeight, shared
from spqlm.formats.base import Layout, Rounding
from spqlm.numerics import block_rounding, gptq, packing
from spqlm.numerics.blocks import Blocks, Grid
from spqlm.numerics.metric import Metric
from spqlm.numerics.nonlinear import LEVELS


class Nonlinear(InBlocks):
    """scale · level, group by group; codes lie in planes as those of evenly spaced levels do."""

    later: ClassVar[tuple[str, ...]] = ("scales",)

    group_size: int = Field(64, ge=2, multiple_of=2)
    scales: Literal["float", "int8"] = Field(
        "float",
        description="`int8`: integers, times a float for each row; half the bytes of `float`",
    )

    @property
    def grid(self) -> Grid:  # type: ignore[override]
        """A group is a block."""
        return _grid(self.bits, self.group_size)

    @property
    def with_floats(self) -> Self:
        """The same with a float for each group."""
        return self.model_copy(update={"scales": "float"})

    def misfit(self, rows: int, columns: int) -> str | None:
        """Groups are whole, and planes are packed by some columns at a time."""
        if columns % self.group_size:
            return f"group_size {self.group_size} must divide the width {columns}"
        if columns % packing.multiple(self.bits):
            needed = packing.multiple(self.bits)
            return f"{self.name} needs a width that {needed} divides, not {columns}"
        return None

    def stored_bytes(self, rows: int, columns: int, float_bytes: int) -> int:
        """Codes and scales."""
        groups = columns // self.group_size
        scales = groups + float_bytes if self.scales == "int8" else groups * float_bytes
        return rows * (columns * self.bits // 8 + scales)

    def fit(self, weight: Tensor, metric: Metric, rounding: Rounding) -> BlockWeight:
        """Scales are searched as floats; codes know what became of them where `descent` is."""
        if self.scales == "float":
            return super().fit(weight, metric, rounding)
        found = self.hold(self.packed(self.with_floats.fit(weight, metric, rounding).unpacked), 0)
        if rounding != "descent":
            return found
        damped = gptq.damped(metric.hessian, metric.damping).float()
        codes = block_rounding.best_codes(weight.float(), found.unpacked, damped, self.grid)
        return self.hold(self.packed(found.unpacked._replace(codes=codes)), 0)

    def packed(self, found: Blocks) -> dict[str, Tensor | None]:
        """The tensors of a weight, whose scales are floats."""
        tensors = super().packed(found)
        if self.scales == "int8":
            tensors["scale"], tensors["multiples"] = shared(found.scale)
        return tensors

    def empty(self, rows: int, columns: int, dtype: torch.dtype | None) -> BlockWeight:
        """Without values."""
        plain = super().empty(rows, columns, dtype)
        if self.scales == "float":
            return plain
        scale = torch.empty(rows, 1, dtype=dtype)
        multiples = torch.empty(rows, columns // self.group_size, dtype=torch.int8)
        return SharedScaleWeight(self, plain.codes, scale, None, multiples)

    def hold(self, tensors: Mapping[str, Tensor | None], columns: int) -> BlockWeight:
        """The tensors `codes` and `scale`, and `multiples` where scales are integers."""
        if self.scales == "float":
            return super().hold(tensors, columns)
        codes, scale, multiples = (tensors[name] for name in ("codes", "scale", "multiples"))
        assert codes is not None and scale is not None and multiples is not None
        return SharedScaleWeight(self, codes, scale, None, multiples)

    def layout(self, weight: BlockWeight) -> Layout:
        """Rows of packed codes, and a scale for each group."""
        columns = weight.shape[1]
        return Layout(self.name, weight.codes, weight.scale, columns, columns // self.group_size)

    def describe(self, rows: int, columns: int) -> str:
        """With the group size."""
        scales = ", scales in int8" if self.scales == "int8" else ""
        return f"{self.name} group {self.group_size}{scales}"


@cache
def _grid(bits: int, group_size: int) -> Grid:
    return Grid(levels=LEVELS[bits], block=group_size, group=group_size)
