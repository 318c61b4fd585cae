"""Methods at matched size, on the same model, text and seeds."""

from spq.comparison.cells import Cell, Comparison
from spq.comparison.methods import METHODS
from spq.comparison.run import Settings, compare

__all__ = ["METHODS", "Cell", "Comparison", "Settings", "compare"]
