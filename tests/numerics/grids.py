"""Grids for the tests of what rounds to them."""

import pytest

from spqlm.numerics.blocks import Grid

UNEVEN = (-9, -4, -1, 0, 2, 7)
GRIDS = {
    "plain": Grid(tuple(range(-8, 8)), 32, 32),
    "shifted": Grid(tuple(range(16)), 32, 32, shifted=True),
    "uneven": Grid(UNEVEN, 32, 32),
    "integers": Grid(tuple(range(-4, 4)), 64, 16, multiples=(-32, 31)),
    "shifted integers": Grid(tuple(range(4)), 64, 16, shifted=True, multiples=(1, 15)),
    "uneven integers": Grid(UNEVEN, 64, 32, multiples=(-32, 31)),
}
each_grid = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
