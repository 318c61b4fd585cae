"""Four bits, denser near zero (`numerics.nonlinear`), with a scale for each group of inputs."""

from typing import ClassVar

from spqlm.formats._nonlinear import Nonlinear


class Nl4(Nonlinear):
    """Codes of four bits."""

    bits: ClassVar[int] = 4


FORMAT = Nl4
