"""Two bits, denser near zero (`numerics.nonlinear`), with a scale for each group of inputs."""

from typing import ClassVar

from spqlm.formats._nonlinear import Nonlinear


class Nl2(Nonlinear):
    """Codes of two bits."""

    bits: ClassVar[int] = 2


FORMAT = Nl2
