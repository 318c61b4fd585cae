"""Grids and what is on them, by their definition."""

from itertools import product

import pytest
import torch
from tests.numerics.grids import GRIDS, each_grid
from tests.stored_weights import random

from spqlm.numerics.blocks import FEW, Blocks, Grid


@each_grid
def test_what_is_restored_is_step_times_level_plus_shift(grid):
    rows, columns = 12, 128
    generator = torch.Generator().manual_seed(0)

    def drawn(most, count):
        return torch.randint(1, most + 1, (rows, count), generator=generator)

    floats, groups = columns // grid.block, columns // grid.group
    several = grid.multiples is not None
    found = Blocks(
        drawn(len(grid.levels) - 1, columns),
        random(rows, floats),
        random(rows, floats, seed=1) if grid.shifted else None,
        drawn(grid.multiples[1], groups) if several else None,
        drawn(grid.multiples[1], groups) if several and grid.shifted else None,
    )
    whole = found.restore(grid)
    for row, column in product((0, 5, 11), (0, 17, 64, 127)):
        block, group = column // grid.block, column // grid.group
        step = found.scale[row, block].double()
        if found.multiples is not None:
            step = step * int(found.multiples[row, group])
        value = step * grid.levels[int(found.codes[row, column])]
        if found.shift is not None:
            integer = 1 if found.shift_multiples is None else found.shift_multiples[row, group]
            value = value + found.shift[row, block].double() * int(integer)
        assert float(whole[row, column]) == pytest.approx(float(value), rel=1e-5, abs=1e-6)


def test_levels_further_apart_have_wider_cells():
    grid = GRIDS["uneven"]
    for position in torch.linspace(-12, 12, 97).tolist():
        code = int(grid.nearest(torch.tensor([position])))
        distance = abs(grid.levels[code] - position)
        assert distance <= min(abs(level - position) for level in grid.levels)


@each_grid
def test_levels_drawn_at_random_are_right_on_average_and_next_to_the_weight(grid):
    lowest, highest = grid.levels[0], grid.levels[-1]
    positions = torch.linspace(lowest - 1, highest + 1, 41)
    drawn = positions.expand(4000, -1)
    codes = grid.at_random(drawn, torch.Generator().manual_seed(0))
    levels = torch.tensor(grid.levels, dtype=torch.float64)[codes]
    wanted = positions.double().clamp(lowest, highest)
    for place, position in enumerate(wanted.tolist()):
        below = max(level for level in grid.levels if level <= position)
        above = min(level for level in grid.levels if level >= position)
        assert set(levels[:, place].tolist()) <= {below, above}
        error = (above - below) / 2 / 4000**0.5
        assert abs(float(levels[:, place].mean()) - position) <= 5 * error + 1e-6


@each_grid
def test_positions_between_codes_are_in_the_units_of_the_gap_they_lie_in(grid):
    levels, last = grid.levels, len(grid.levels) - 1
    for code, share in product(range(len(levels)), (-0.4, -0.1, 0.0, 0.3)):
        other = code + (1 if share > 0 else -1)
        if not 0 <= other <= last:
            continue
        apart = abs(share) * (levels[other] - levels[code])
        at = torch.tensor([float(code)])
        assert float(grid.steps_from(at, torch.tensor([apart]))) == pytest.approx(share, abs=1e-6)
        assert float(grid.code(at + share)) == code


@each_grid
def test_codes_of_positions_stay_in_range_and_their_spacing_is_that_of_the_neighbours(grid):
    levels, last = grid.levels, len(grid.levels) - 1
    positions = torch.tensor([-3.0, -0.2, last + 0.3, last + 9.0])
    assert grid.code(positions).tolist() == [0, 0, last, last]
    for code in range(len(levels)):
        below, above = levels[max(code - 1, 0)], levels[min(code + 1, last)]
        count = min(code + 1, last) - max(code - 1, 0)
        found = float(grid.spacing(torch.tensor([float(code)])))
        assert found == pytest.approx((above - below) / count)


@pytest.mark.parametrize("count", [3, 3 * FEW])
def test_few_and_many_positions_get_the_nearest_code(count):
    levels = (-8, -3, 0, 1, 7)
    grid = Grid(levels=levels, block=32, group=32)
    near = torch.linspace(-20, 20, 81).repeat(-(-count // 81))[:count]
    position = torch.stack([near, near + 1e-3, near - 1e-3])
    codes = grid.nearest(position)
    # Of two that are as near, the lower one.
    assert torch.equal(codes, (position[..., None] - torch.tensor(levels)).abs().argmin(-1))
    assert torch.equal(grid.nearest_level(position), grid.level(codes))


@pytest.mark.parametrize("count", [3, 3 * FEW])
def test_positions_that_are_not_finite_get_codes_that_exist(count):
    grid = Grid(levels=(-8, -3, 0, 1, 7), block=32, group=32)
    for value, expected in ((torch.inf, {4}), (-torch.inf, {0}), (torch.nan, {0, 4})):
        assert {*grid.nearest(torch.full((count,), value)).tolist()} <= expected
