"""Methods at matched size, on the same model, text and seeds."""

from spqlm.comparison.cells import Cell, Comparison
from spqlm.comparison.methods import METHODS
from spqlm.comparison.run import Settings, compare

__all__ = ["METHODS", "Cell", "Comparison", "Settings", "compare"]
