"""Five bits, as ggml's Q5_K has them."""

from typing import ClassVar

from spqlm.formats._blocks import InBlocks
from spqlm.numerics.blocks import Grid


class Q5K(InBlocks):
    """Codes of five bits with a scale and a shift for 32 columns, integers of six bits."""

    grid: ClassVar[Grid] = Grid(
        levels=tuple(range(32)), block=256, group=32, shifted=True, multiples=(1, 63)
    )
    bits: ClassVar[int] = 5
    multiple_bits: ClassVar[int] = 6


FORMAT = Q5K
