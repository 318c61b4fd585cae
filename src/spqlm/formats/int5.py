"""Five bits: codes in [-16, 15] in planes (`numerics.packing`), a scale for each input group."""

from typing import ClassVar

from spqlm.formats._planes import InPlanes


class Int5(InPlanes):
    """Codes of five bits."""

    bits: ClassVar[int] = 5


FORMAT = Int5
