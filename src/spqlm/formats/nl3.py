"""Three bits, denser near zero (`numerics.nonlinear`), with a scale for each group of inputs."""

from typing import ClassVar

from spqlm.formats._nonlinear import Nonlinear


class Nl3(Nonlinear):
    """Codes of three bits."""

    bits: ClassVar[int] = 3


FORMAT = Nl3
