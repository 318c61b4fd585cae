"""Four bits: codes in [-8, 7], two to a byte, a scale for each group of inputs."""

from typing import ClassVar

from torch import Tensor

from spqlm.formats._grouped import Grouped
from spqlm.numerics import integer


class Int4(Grouped):
    """Codes of four bits, stored plus eight, the even column in the low nibble."""

    bits: ClassVar[int] = 4

    def pack(self, codes: Tensor) -> Tensor:
        """Two to a byte."""
        return integer.pack_int4(codes)

    def unpack(self, packed: Tensor) -> Tensor:
        """Inverse of `pack`."""
        return integer.unpack_int4(packed)


FORMAT = Int4
