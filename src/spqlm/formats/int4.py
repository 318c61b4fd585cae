"""Four bits: codes in [-8, 7], two to a byte, a scale for each group of inputs."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from spqlm.formats._grouped import Grouped, GroupedWeight
from spqlm.formats.base import Layout
from spqlm.numerics import integer


@dataclass(eq=False)
class Int4Weight(GroupedWeight):
    """Codes uint8 [rows, columns / 2], stored plus eight, the even column in the low nibble."""

    def layout(self) -> Layout:
        """Rows of nibbles."""
        groups = self.scale.shape[1]
        return Layout("int4", self.codes, self.scale, groups * self.format.group_size, groups)


class Int4(Grouped):
    """Codes of four bits."""

    bits: ClassVar[int] = 4
    weight_class: ClassVar[type[GroupedWeight]] = Int4Weight

    def pack(self, codes: Tensor) -> Tensor:
        """Two to a byte."""
        return integer.pack_int4(codes)

    def unpack(self, packed: Tensor) -> Tensor:
        """Inverse of `pack`."""
        return integer.unpack_int4(packed)


FORMAT = Int4
