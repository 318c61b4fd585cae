"""Three bits, as ggml's Q3_K has them."""

from typing import ClassVar

from spqlm.formats._blocks import InBlocks
from spqlm.numerics.blocks import Grid


class Q3K(InBlocks):
    """Codes of three bits with a scale for 16 columns, an integer of six bits and either sign."""

    grid: ClassVar[Grid] = Grid(
        levels=tuple(range(-4, 4)), block=256, group=16, multiples=(-32, 31)
    )
    bits: ClassVar[int] = 3
    multiple_bits: ClassVar[int] = 6


FORMAT = Q3K
