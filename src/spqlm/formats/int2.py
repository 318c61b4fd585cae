"""Two bits: codes in [-2, 1] in a plane (`numerics.packing`), a scale for each group of inputs."""

from typing import ClassVar

from spqlm.formats._planes import InPlanes


class Int2(InPlanes):
    """Codes of two bits."""

    bits: ClassVar[int] = 2


FORMAT = Int2
