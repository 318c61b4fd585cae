"""Columns one after the other: against the definition, by every set of kernels and without any."""

import pytest
import torch
from tests.instruction_sets import chosen
from tests.numerics.grids import GRIDS, each_grid
from tests.stored_weights import random

from spqlm import native
from spqlm.native import columns
from spqlm.numerics import in_order
from spqlm.numerics.blocks import even_grid
from spqlm.numerics.in_order import Affine

COUNT = 24


@pytest.fixture(params=[*native.INSTRUCTION_SETS, "PyTorch", "Triton"])
def arithmetic(request, monkeypatch):
    if request.param in ("PyTorch", "Triton"):
        by = by_triton() if request.param == "Triton" else lambda *_: None
        monkeypatch.setattr(columns, "_on_cpu", by)
        yield
        return
    with chosen(request.param):
        yield


def by_triton():
    """On a GPU where there is one, else in Triton's interpreter."""
    triton = pytest.importorskip("spqlm.native.columns_triton", reason="triton is not installed")
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def run(parts, levels):
        moved = [None if part is None else part.to(device) for part in parts]
        return [found.cpu() for found in triton.round_columns(moved, levels)]

    return run


def case(rows, grid):
    """State, update, divisors and affine, of which some have offsets and dropped entries."""
    update = random(COUNT, COUNT, seed=1) / COUNT
    step = 0.5 + random(rows, seed=2).abs()
    offset = random(rows, seed=3) if grid.shifted else None
    kept = random(COUNT, rows, seed=4) > -0.5 if grid.multiples else None
    spread = max(map(abs, grid.levels))
    state = 0.8 * spread * random(COUNT, rows, seed=5)
    return state, update, 0.5 + random(COUNT, seed=6).abs(), Affine(step, offset, kept)


@each_grid
@pytest.mark.parametrize("rows", [1, 64, 150])
def test_each_column_takes_the_nearest_level_and_later_ones_make_up_for_it(arithmetic, grid, rows):
    state, update, divisors, affine = case(rows, grid)
    start = random(COUNT, rows, seed=7) if rows == 64 else None
    before = state.clone()
    codes, errors = in_order.round_columns(state, update, divisors, grid, affine, start)
    assert torch.equal(state, before)
    assert codes.dtype == torch.int16 and errors.dtype == torch.float32
    levels = torch.tensor(grid.levels).double()
    now = state.double()
    for column in range(COUNT):
        offset = 0 if affine.offset is None else affine.offset.double()
        away = ((now[column] - offset) / affine.step)[:, None] - levels
        chosen_level = away.gather(1, codes[column].long()[:, None])[:, 0]
        assert bool((chosen_level.abs() <= away.abs().amin(1) + 1e-4).all())
        rounded = levels[codes[column].long()] * affine.step + offset
        if affine.kept is not None:
            rounded *= affine.kept[column]
        source = now[column] if start is None else start[column].double()
        expected = (source - rounded) / divisors[column]
        torch.testing.assert_close(errors[column].double(), expected, rtol=1e-4, atol=1e-3)
        now[column + 1 :] -= update[column, column + 1 :, None] * errors[column].double()


def test_threads_change_nothing(library):
    grid = GRIDS["uneven"]
    given = case(300, grid)
    threads, found = torch.get_num_threads(), []
    try:
        for some in (1, 3):
            torch.set_num_threads(some)
            found.append(in_order.round_columns(*given[:3], grid, given[3]))
    finally:
        torch.set_num_threads(threads)
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("grid", [GRIDS["uneven"], even_grid(8, 32)], ids=["uneven", "even"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 3e38])
def test_codes_exist_whatever_the_numbers(arithmetic, grid, value):
    state, update, divisors, affine = case(5, grid)
    state[3, 2] = value
    codes, errors = in_order.round_columns(state, update, divisors, grid, affine)
    assert 0 <= int(codes.min()) and int(codes.max()) < len(grid.levels)
    others = torch.arange(5) != 2
    assert bool(torch.isfinite(errors[:, others]).all())


@pytest.mark.parametrize(("block", "group"), [(16, 16), (32, 8), (64, 64), (96, 32)])
@pytest.mark.parametrize("width", [8, 20, 500])
def test_pieces_and_steps_add_up_to_a_pass_over_all_columns(block, group, width, monkeypatch):
    monkeypatch.setattr(in_order, "BLOCK", width)
    values, update = random(192, 5), random(192, 192, seed=1) / 192
    expected = values.double()
    for column in range(len(expected)):
        error = expected[column] - expected[column].round()
        expected[column + 1 :] -= torch.outer(update[column, column + 1 :].double(), error)
    pieces = []

    def replace(piece):
        pieces.append(piece)
        assert piece.start // group == (piece.stop - 1) // group
        grid, affine = even_grid(8, group), Affine(torch.ones(5))
        parts = values[piece], update[piece, piece], torch.ones(piece.stop - piece.start)
        _, errors = in_order.round_columns(*parts, grid, affine)
        return errors

    in_order.sweep(values, lambda a, b: update[a, b], block, group, replace)
    assert [piece.start for piece in pieces[1:]] == [piece.stop for piece in pieces[:-1]]
    assert (pieces[0].start, pieces[-1].stop) == (0, 192)
    # Each column is left as it was when its turn came to be rounded, less what earlier ones took.
    last = values[pieces[-1].start].double()
    torch.testing.assert_close(last, expected[pieces[-1].start], rtol=1e-4, atol=1e-4)
