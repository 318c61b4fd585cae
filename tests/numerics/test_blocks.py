"""Rounding to blocks, against their definition."""

from itertools import product

import pytest
import torch
from tests.stored_weights import random

from spqlm.numerics import blocks, gptq
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
ROWS, COLUMNS = 12, 128


def hessian():
    mixing = random(COLUMNS, COLUMNS, seed=1) / COLUMNS**0.5
    return mixing @ mixing.T + 0.1 * torch.eye(COLUMNS)


def loss(error):
    return float(((error @ hessian()) * error).sum())


def rounded(weight, grid, *, alone=False):
    if alone:
        return blocks.round_blocks(weight, torch.diag(hessian().diagonal().rsqrt()), grid)
    return blocks.round_blocks(weight, gptq.inverse_factor(hessian())[0], grid)


@each_grid
def test_what_is_restored_is_step_times_level_plus_shift(grid):
    found = rounded(random(ROWS, COLUMNS), grid)
    whole = found.restore(grid)
    for row, column in product((0, 5, 11), (0, 17, 64, 127)):
        block, group = column // grid.block, column // grid.group
        step = found.scale[row, block].double()
        if found.multiples is not None:
            step = step * int(found.multiples[row, group])
        value = step * grid.levels[int(found.codes[row, column])]
        if found.shift is not None:
            times = 1 if found.shift_multiples is None else found.shift_multiples[row, group]
            value = value + found.shift[row, block].double() * int(times)
        assert float(whole[row, column]) == pytest.approx(float(value), rel=1e-6, abs=1e-7)


@each_grid
def test_integers_are_within_their_limits_and_floats_have_eight_bits(grid):
    found = rounded(random(ROWS, COLUMNS), grid)
    for floats in (found.scale, found.shift):
        if floats is not None:
            assert torch.equal(floats.bfloat16().float(), floats)
            assert torch.equal(floats.half().float(), floats)
            assert bool(floats.all())
    if grid.multiples is not None:
        assert int(found.multiples.min()) >= grid.multiples[0]
        assert int(found.multiples.max()) <= grid.multiples[1]
        assert bool(found.multiples.all())
        if grid.shifted:
            assert 0 <= int(found.shift_multiples.min())
            assert int(found.shift_multiples.max()) <= grid.multiples[1]


@each_grid
def test_alone_each_weight_takes_the_level_next_to_it(grid):
    weight = random(ROWS, COLUMNS)
    found = rounded(weight, grid, alone=True)
    error = (found.restore(grid) - weight).abs()
    for code in range(len(grid.levels)):
        other = found._replace(codes=torch.full_like(found.codes, code)).restore(grid)
        assert bool((error <= (other - weight).abs() + 1e-5).all())


@each_grid
def test_columns_to_the_right_make_up_for_errors_and_descent_for_more(grid):
    weight = random(ROWS, COLUMNS)
    near, better = rounded(weight, grid, alone=True), rounded(weight, grid)
    best = blocks.improve(weight, better, gptq.damped(hessian(), gptq.DAMPING), grid)
    losses = [loss(found.restore(grid) - weight) for found in (near, better, best)]
    assert losses[1] < 0.97 * losses[0]
    assert losses[2] < losses[1]
    assert losses[2] < 0.2 * loss(weight)


@each_grid
def test_a_weight_on_the_grid_is_found_again(grid):
    generator = torch.Generator().manual_seed(3)
    codes = torch.randint(0, len(grid.levels), (ROWS, COLUMNS), generator=generator)
    # Both ends are there in every group, so that its range says its step.
    codes.unflatten(1, (-1, grid.group))[..., :2] = torch.tensor([0, len(grid.levels) - 1])
    weight = 0.25 * grid.level(codes.float())
    if grid.shifted:
        weight = weight - 1.5
    found = rounded(weight, grid, alone=True)
    assert float((found.restore(grid) - weight).abs().max()) < 0.02


@each_grid
@pytest.mark.parametrize("value", [0.0, 3.0, -3.0, 1e-9])
def test_weights_that_are_all_alike_are_no_division_by_zero(grid, value):
    weight = torch.full((2, COLUMNS), value)
    found = rounded(weight, grid)
    assert float((found.restore(grid) - weight).abs().max()) <= 0.1 * abs(value) + 1e-6


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e9])
def test_weights_without_a_scale_are_refused(bad):
    weight = random(2, COLUMNS)
    weight[1, 3] = bad
    with pytest.raises(ValueError, match="scales must be finite"):
        rounded(weight, GRIDS["plain"])


def test_a_search_weighs_errors_by_their_cost():
    values, cost = random(4, 1, 32), torch.ones(1, 32)
    cost[0, :4] = 1e4
    grid = GRIDS["plain"]

    def error(weights):
        step, _ = blocks.search(values, weights, grid)
        levels = grid.level(grid.nearest(values / step[..., None]))
        return float(((levels * step[..., None] - values).square() * cost).sum())

    assert error(cost) < 0.8 * error(torch.ones(1, 32))


def test_levels_further_apart_have_wider_cells():
    grid = GRIDS["uneven"]
    for position in torch.linspace(-12, 12, 97).tolist():
        code = int(grid.nearest(torch.tensor([position])))
        distance = abs(grid.levels[code] - position)
        assert distance <= min(abs(level - position) for level in grid.levels)
