"""Four bits, unevenly spaced, as ggml's IQ4_XS has them."""

from typing import ClassVar

from spqlm.formats._blocks import UNEVEN, InBlocks
from spqlm.numerics.blocks import Grid


class Iq4Xs(InBlocks):
    """The levels of IQ4_NL with a scale for 32 columns, an integer of six bits and either sign."""

    grid: ClassVar[Grid] = Grid(levels=UNEVEN, block=256, group=32, multiples=(-32, 31))
    bits: ClassVar[int] = 4
    multiple_bits: ClassVar[int] = 8


FORMAT = Iq4Xs
