"""Four bits, unevenly spaced, as ggml's IQ4_NL has them."""

from typing import ClassVar

from spqlm.formats._blocks import UNEVEN, InBlocks
from spqlm.numerics.blocks import Grid


class Iq4Nl(InBlocks):
    """Codes of four bits for unevenly spaced levels, with a scale for 32 columns."""

    grid: ClassVar[Grid] = Grid(levels=UNEVEN, block=32, group=32)
    bits: ClassVar[int] = 4


FORMAT = Iq4Nl
