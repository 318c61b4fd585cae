"""Three bits: codes in [-4, 3] in planes (`numerics.packing`), a scale for each group of inputs."""

from typing import ClassVar

from spqlm.formats._planes import InPlanes


class Int3(InPlanes):
    """Codes of three bits."""

    bits: ClassVar[int] = 3


FORMAT = Int3
