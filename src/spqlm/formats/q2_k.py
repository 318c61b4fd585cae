"""Two bits, as ggml's Q2_K has them."""

from typing import ClassVar

from spqlm.formats._blocks import InBlocks
from spqlm.numerics.blocks import Grid


class Q2K(InBlocks):
    """Codes of two bits with a scale and a shift for 16 columns, integers of four bits."""

    grid: ClassVar[Grid] = Grid(
        levels=tuple(range(4)), block=256, group=16, shifted=True, multiples=(1, 15)
    )
    bits: ClassVar[int] = 2
    multiple_bits: ClassVar[int] = 4


FORMAT = Q2K
