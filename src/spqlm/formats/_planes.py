"""Grouped codes of any width from two to seven bits, packed in planes."""

from torch import Tensor

from spqlm.formats._grouped import Grouped
from spqlm.numerics import packing


class InPlanes(Grouped):
    """Codes whose bits lie in planes of four, two and one."""

    def misfit(self, rows: int, columns: int) -> str | None:
        """Planes are packed by some columns at a time."""
        if columns % packing.multiple(self.bits):
            needed = packing.multiple(self.bits)
            return f"{self.name} needs a width that {needed} divides, not {columns}"
        return super().misfit(rows, columns)

    def pack(self, codes: Tensor) -> Tensor:
        """int8 [rows, columns] -> uint8 [rows, columns · bits / 8]."""
        return packing.pack(codes, self.bits)

    def unpack(self, packed: Tensor) -> Tensor:
        """Inverse of `pack`."""
        return packing.unpack(packed, self.bits)
