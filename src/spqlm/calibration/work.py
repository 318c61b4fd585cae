"""What a stage will do, counted from shapes alone, so that its time can be told beforehand."""

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple, Self

from spqlm.formats import Format
from spqlm.formats.base import Rounding


class Fit(NamedTuple):
    """A weight [rows, columns] that becomes codes."""

    form: Format
    rounding: Rounding
    rows: int
    columns: int


@dataclass(frozen=True)
class Work:
    """Counts of what takes time.

    Attributes:
        read: tokens through the decoder layers.
        heads: tokens through the lm_head as well.
        traced: tokens through the whole model and, from their loss, back.
        moments: tokens whose second moments are summed at every weight of the decoder layers.
        written: sequences of calibration text that the model writes itself.
        fits: how many weights of each kind become codes.
    """

    read: int = 0
    heads: int = 0
    traced: int = 0
    moments: int = 0
    written: int = 0
    fits: Counter[Fit] = field(default_factory=Counter)

    def __add__(self, other: Self) -> "Work":
        """Both."""
        return Work(
            self.read + other.read,
            self.heads + other.heads,
            self.traced + other.traced,
            self.moments + other.moments,
            self.written + other.written,
            self.fits + other.fits,
        )
