"""Steps and shifts of groups."""

import torch
from tests.numerics.grids import GRIDS
from tests.stored_weights import random

from spqlm.numerics import block_search


def test_a_search_weighs_errors_by_their_cost():
    values, cost = random(4, 1, 32), torch.ones(1, 32)
    cost[0, :4] = 1e4
    grid = GRIDS["plain"]

    def error(weights):
        step, _ = block_search.search(values, weights, grid)
        levels = grid.level(grid.nearest(values / step[..., None]))
        return float(((levels * step[..., None] - values).square() * cost).sum())

    assert error(cost) < 0.8 * error(torch.ones(1, 32))
