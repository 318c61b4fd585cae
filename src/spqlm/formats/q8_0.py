"""Eight bits, as ggml's Q8_0 has them."""

from typing import ClassVar

from spqlm.formats._blocks import InBlocks
from spqlm.numerics.blocks import Grid


class Q80(InBlocks):
    """Codes of eight bits with a scale for 32 columns."""

    grid: ClassVar[Grid] = Grid(levels=tuple(range(-128, 128)), block=32, group=32)
    bits: ClassVar[int] = 8


FORMAT = Q80
