"""Six bits: codes in [-32, 31] in planes (`numerics.packing`), a scale for each group of inputs."""

from typing import ClassVar

from spqlm.formats._planes import InPlanes


class Int6(InPlanes):
    """Codes of six bits."""

    bits: ClassVar[int] = 6


FORMAT = Int6
