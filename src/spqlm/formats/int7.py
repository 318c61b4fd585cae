"""Seven bits: codes in [-64, 63] in planes (`numerics.packing`), a scale for each input group."""

from typing import ClassVar

from spqlm.formats._planes import InPlanes


class Int7(InPlanes):
    """Codes of seven bits."""

    bits: ClassVar[int] = 7


FORMAT = Int7
