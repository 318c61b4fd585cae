"""Four bits: indices into a table of sixteen values, times a scale for each group of inputs.

What a format from elsewhere would be: it has what `Format` and `StoredWeight` demand, and nothing
else. Its packed indices look like those of int4.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from spqlm.errors import SpqError
from spqlm.formats.base import Format, Rounding, StoredWeight
from spqlm.numerics import integer
from spqlm.numerics.metric import Metric


@dataclass(eq=False)
class Table4Weight(StoredWeight):
    """table[index] · scale.

    Attributes:
        format: with the group size.
        codes: indices, two to a byte, uint8 [rows, columns / 2].
        scale: [rows, groups], positive.
        table: [16].
    """

    trained: ClassVar[tuple[str, ...]] = ("scale",)

    format: "Table4"
    codes: Tensor
    scale: Tensor
    table: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self.codes), 2 * self.codes.shape[1]

    def restore(self, dtype: torch.dtype | None = None) -> Tensor:
        """Looked up, and scaled group by group."""
        scale = self.scale if dtype is None else self.scale.to(dtype)
        values = self.table.to(scale.dtype)[_indices(self.codes)]
        return (values.unflatten(1, (scale.shape[1], -1)) * scale[..., None]).flatten(1)

    def take_rows(self, index: Tensor) -> Self:
        """Some outputs."""
        return replace(self, codes=self.codes[index], scale=self.scale[index])

    def take_columns(self, index: Tensor) -> Self:
        """Some inputs, by whole groups."""
        size = self.format.group_size
        groups = index[::size] // size
        if not torch.equal((groups[:, None] * size + torch.arange(size)).flatten(), index):
            raise SpqError(f"inputs of a weight in table4 go by whole groups of {size}")
        codes = _packed(_indices(self.codes)[:, index])
        return replace(self, codes=codes, scale=self.scale[:, groups])

    def check(self) -> None:
        """Finite."""
        if not bool(torch.isfinite(self.scale).all() & torch.isfinite(self.table).all()):
            raise ValueError("has a scale or a table that is not finite")


class Table4(Format):
    """Values of a table that is fitted to the weight."""

    group_size: Literal[32, 64] = 32

    @property
    def code_bits(self) -> float:
        """Of an index."""
        return 4

    @property
    def multiple(self) -> int:
        """Groups are whole."""
        return self.group_size

    def stored_bytes(self, rows: int, columns: int, float_bytes: int) -> int:
        """Indices, scales and the table."""
        return rows * columns // 2 + (rows * columns // self.group_size + 16) * float_bytes

    def fit(self, weight: Tensor, metric: Metric, rounding: Rounding) -> Table4Weight:
        """Sixteen quantiles of what is left when a group's largest magnitude is taken out."""
        grouped = weight.unflatten(1, (-1, self.group_size))
        scale = integer.round_scale_up(grouped.abs().amax(2))
        shares = (grouped / scale[..., None]).flatten(1)
        table = integer.round_scale(torch.quantile(shares, torch.linspace(0, 1, 16)))
        codes = (shares[..., None] - table).abs().argmin(2)
        return Table4Weight(self, _packed(codes), scale, table)

    def empty(self, rows: int, columns: int, dtype: torch.dtype | None) -> Table4Weight:
        """Without values."""
        codes = torch.empty(rows, columns // 2, dtype=torch.uint8)
        scale = torch.empty(rows, columns // self.group_size, dtype=dtype)
        return Table4Weight(self, codes, scale, torch.empty(16, dtype=dtype))

    def hold(self, tensors: Mapping[str, Tensor | None], columns: int) -> Table4Weight:
        """The tensors `codes`, `scale` and `table`."""
        codes, scale, table = (tensors[name] for name in ("codes", "scale", "table"))
        assert codes is not None and scale is not None and table is not None
        return Table4Weight(self, codes, scale, table)

    def describe(self, rows: int, columns: int) -> str:
        """With the group size."""
        return f"table4 group {self.group_size}"


def _packed(indices: Tensor) -> Tensor:
    indices = indices.to(torch.uint8)
    return indices[:, ::2] | (indices[:, 1::2] << 4)


def _indices(packed: Tensor) -> Tensor:
    return torch.stack((packed & 15, packed >> 4), 2).flatten(1).long()


FORMAT = Table4
