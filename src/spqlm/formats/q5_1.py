"""Five bits, as ggml's Q5_1 has them."""

from typing import ClassVar

from spqlm.formats._blocks import InBlocks
from spqlm.numerics.blocks import Grid


class Q51(InBlocks):
    """Codes of five bits with a scale and a shift for 32 columns."""

    grid: ClassVar[Grid] = Grid(levels=tuple(range(32)), block=32, group=32, shifted=True)
    bits: ClassVar[int] = 5


FORMAT = Q51
