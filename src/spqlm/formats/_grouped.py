"""Signed codes of few bits with a scale of either sign for each group of inputs.

What such formats share. One of them states its bits and how codes are packed.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor

from spqlm.errors import SpqError
from spqlm.formats._latent import Latent
from spqlm.formats.base import Format, Layout, Rounding, StoredWeight
from spqlm.numerics import gptq, integer
from spqlm.numerics.blocks import Blocks, even_grid
from spqlm.numerics.descent import improve_groups
from spqlm.numerics.metric import Metric
from spqlm.numerics.scale_gradient import gradient_of_scales


@dataclass(eq=False)
class GroupedWeight(StoredWeight):
    """scale · codes, group by group.

    Attributes:
        format: with the group size.
        codes: packed, uint8 [rows, packed columns].
        scale: [rows, groups], of either sign, never 0.
    """

    trained: ClassVar[tuple[str, ...]] = ("scale",)

    format: "Grouped"
    codes: Tensor
    scale: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self.codes), self.scale.shape[1] * self.format.group_size

    @property
    def unpacked(self) -> Tensor:
        """The codes, int8 [rows, columns]."""
        return self.format.unpack(self.codes)

    def restore(self, dtype: torch.dtype | None = None) -> Tensor:
        """Codes times scale."""
        scale = self.scale if dtype is None else self.scale.to(dtype)
        return integer.dequantize_groups(self.unpacked, scale)

    def take_rows(self, index: Tensor) -> Self:
        """Some outputs."""
        return replace(self, codes=self.codes[index], scale=self.scale[index])

    def take_columns(self, index: Tensor) -> Self:
        """Some inputs: whole groups, which is what shares a scale."""
        groups = whole_groups(index, self.format.group_size, self.format.name)
        codes = self.unpacked[:, index]
        return replace(self, codes=self.format.pack(codes), scale=self.scale[:, groups])

    def check(self) -> None:
        """Scales are not zero."""
        if not bool((torch.isfinite(self.scale) & (self.scale != 0)).all()):
            raise ValueError("has a scale that is zero or not finite")

    def gradients(self, gradient: Tensor, restored: Tensor) -> tuple[Tensor]:
        """Σ_j gradient · code over each group."""
        return (gradient_of_scales(gradient, restored, self.scale),)

    def layout(self) -> Layout:
        """Rows of packed codes."""
        groups = self.scale.shape[1]
        columns = groups * self.format.group_size
        return Layout(self.format.name, self.codes, self.scale, columns, groups)

    def latent(self) -> Latent:
        """Positions at its codes."""
        grid = even_grid(self.format.bits, self.format.group_size)
        codes = self.unpacked.to(torch.int16) - grid.levels[0]
        return Latent(Blocks(codes, self.scale.detach(), None, None, None), grid, self._settled)

    def _settled(self, found: Blocks) -> Self:
        codes = (found.codes + integer.code_range(self.format.bits)[0]).to(torch.int8)
        return replace(self, codes=self.format.pack(codes), scale=found.scale)

    def absorb(self, update: Tensor, generator: torch.Generator) -> Self:
        """New codes at the same scales, rounded at random."""
        weight = self.restore(torch.float32) + update
        codes = integer.quantize_groups_stochastic(
            weight, self.scale, generator, bits=self.format.bits
        )
        return replace(self, codes=self.format.pack(codes))


class Grouped(Format):
    """Codes in [-2^(bits-1), 2^(bits-1) - 1], a scale for each group of consecutive inputs."""

    group_size: int = Field(64, ge=2, multiple_of=2)

    bits: ClassVar[int]

    @property
    def code_bits(self) -> float:
        """Those of the format."""
        return self.bits

    @property
    def rows_apart(self) -> bool:
        """Each has codes and scales of its own."""
        return True

    @property
    def multiple(self) -> int:
        """Groups are whole."""
        return self.group_size

    @abstractmethod
    def pack(self, codes: Tensor) -> Tensor:
        """int8 [rows, columns] -> uint8 [rows, packed columns]."""

    @abstractmethod
    def unpack(self, packed: Tensor) -> Tensor:
        """Inverse of `pack`."""

    def packed_columns(self, columns: int) -> int:
        """Bytes of a row's codes."""
        return columns * self.bits // 8

    def stored_bytes(self, rows: int, columns: int, float_bytes: int) -> int:
        """Codes and scales."""
        scales = rows * columns // self.group_size
        return rows * self.packed_columns(columns) + scales * float_bytes

    def fit(self, weight: Tensor, metric: Metric, rounding: Rounding) -> GroupedWeight:
        """Scales are searched: for `nearest` all at once, else when a group's turn comes."""
        hessian, size = metric.hessian, self.group_size
        if rounding == "nearest":
            scale = integer.search_group_scale(weight, hessian.diagonal(), size, self.bits)
            codes = integer.quantize_groups(weight, scale, self.bits)
            return GroupedWeight(self, self.pack(codes), scale)
        codes, scale = gptq.round_groups(weight, metric.factor, size, self.bits)
        if rounding == "descent":
            damped = gptq.damped(hessian, metric.damping)
            codes, scale = improve_groups(weight, codes, scale, damped, self.bits)
        return GroupedWeight(self, self.pack(codes), scale)

    def empty(self, rows: int, columns: int, dtype: torch.dtype | None) -> GroupedWeight:
        """Without values."""
        codes = torch.empty(rows, self.packed_columns(columns), dtype=torch.uint8)
        scale = torch.empty(rows, columns // self.group_size, dtype=dtype)
        return GroupedWeight(self, codes, scale)

    def hold(self, tensors: Mapping[str, Tensor | None], columns: int) -> GroupedWeight:
        """The tensors `codes` and `scale`."""
        codes, scale = tensors["codes"], tensors["scale"]
        assert codes is not None and scale is not None
        return GroupedWeight(self, codes, scale)

    def describe(self, rows: int, columns: int) -> str:
        """With the group size."""
        return f"{self.name} group {self.group_size}"


def whole_groups(index: Tensor, group_size: int, name: str) -> Tensor:
    """Numbers of the groups that a set of columns makes up, int64, ascending.

    Args:
        index: columns, int64, ascending.
        group_size: columns in a group.
        name: of the format, for the message.

    Raises:
        SpqError: the columns are not whole groups.
    """
    groups = index[::group_size] // group_size
    inside = torch.arange(group_size, device=index.device)
    if not torch.equal((groups[:, None] * group_size + inside).flatten(), index):
        raise SpqError(f"inputs of a weight in {name} go by whole groups of {group_size}")
    return groups
