"""Steps and shifts of groups."""

import torch
from tests.numerics.grids import GRIDS, each_grid
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


@each_grid
def test_shares_are_tried_together_or_one_after_another_with_the_same_result(grid, monkeypatch):
    values, cost = random(7, 2, grid.group), random(2, grid.group).abs() + 0.1
    together = block_search.search(values, cost, grid)
    monkeypatch.setattr(block_search, "AT_ONCE", 1)
    apart = block_search.search(values, cost, grid)
    assert torch.equal(together[0], apart[0])
    assert (together[1] is None) == (apart[1] is None) == (not grid.shifted)
    assert together[1] is None or torch.equal(together[1], apart[1])
