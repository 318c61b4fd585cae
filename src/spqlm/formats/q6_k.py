"""Six bits, as ggml's Q6_K has them."""

from typing import ClassVar

from spqlm.formats._blocks import InBlocks
from spqlm.numerics.blocks import Grid


class Q6K(InBlocks):
    """Codes of six bits with a scale for 16 columns, an integer of eight bits."""

    grid: ClassVar[Grid] = Grid(
        levels=tuple(range(-32, 32)), block=256, group=16, multiples=(-128, 127)
    )
    bits: ClassVar[int] = 6
    multiple_bits: ClassVar[int] = 8


FORMAT = Q6K
