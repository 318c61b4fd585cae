"""Four bits, as ggml's Q4_1 has them."""

from typing import ClassVar

from spqlm.formats._blocks import InBlocks
from spqlm.numerics.blocks import Grid


class Q41(InBlocks):
    """Codes of four bits with a scale and a shift for 32 columns."""

    grid: ClassVar[Grid] = Grid(levels=tuple(range(16)), block=32, group=32, shifted=True)
    bits: ClassVar[int] = 4


FORMAT = Q41
