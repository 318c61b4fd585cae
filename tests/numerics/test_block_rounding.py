"""Rounding to blocks: limits, ties to the metric, and what it refuses."""

import pytest
import torch
from tests.numerics.grids import GRIDS, each_grid
from tests.stored_weights import random

from spqlm.numerics import block_rounding, gptq

ROWS, COLUMNS = 12, 128


def hessian():
    mixing = random(COLUMNS, COLUMNS, seed=1) / COLUMNS**0.5
    return mixing @ mixing.T + 0.1 * torch.eye(COLUMNS)


def loss(error):
    return float(((error @ hessian()) * error).sum())


def rounded(weight, grid, *, alone=False):
    if alone:
        return block_rounding.round_blocks(weight, torch.diag(hessian().diagonal().rsqrt()), grid)
    return block_rounding.round_blocks(weight, gptq.inverse_factor(hessian())[0], grid)


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
    best = block_rounding.improve(weight, better, gptq.damped(hessian(), gptq.DAMPING), grid)
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
