"""Five bits, denser near zero (`numerics.nonlinear`), with a scale for each group of inputs."""

from typing import ClassVar

from spqlm.formats._nonlinear import Nonlinear


class Nl5(Nonlinear):
    """Codes of five bits."""

    bits: ClassVar[int] = 5


FORMAT = Nl5
