"""Codes of few bits for levels that are denser near zero, with a scale for each group of inputs."""

from functools import cache

from pydantic import Field

from spqlm.formats._blocks import BlockWeight, InBlocks
from spqlm.formats.base import Layout
from spqlm.numerics import packing
from spqlm.numerics.blocks import Grid
from spqlm.numerics.nonlinear import LEVELS


class Nonlinear(InBlocks):
    """scale · level, group by group; codes lie in planes as those of evenly spaced levels do."""

    group_size: int = Field(64, ge=2, multiple_of=2)

    @property
    def grid(self) -> Grid:  # type: ignore[override]
        """A group is a block."""
        return _grid(self.bits, self.group_size)

    def misfit(self, rows: int, columns: int) -> str | None:
        """Groups are whole, and planes are packed by some columns at a time."""
        if columns % self.group_size:
            return f"group_size {self.group_size} must divide the width {columns}"
        if columns % packing.multiple(self.bits):
            needed = packing.multiple(self.bits)
            return f"{self.name} needs a width that {needed} divides, not {columns}"
        return None

    def layout(self, weight: BlockWeight) -> Layout:
        """Rows of packed codes, and a scale for each group."""
        columns = weight.shape[1]
        return Layout(self.name, weight.codes, weight.scale, columns, columns // self.group_size)

    def describe(self, rows: int, columns: int) -> str:
        """With the group size."""
        return f"{self.name} group {self.group_size}"


@cache
def _grid(bits: int, group_size: int) -> Grid:
    return Grid(levels=LEVELS[bits], block=group_size, group=group_size)
