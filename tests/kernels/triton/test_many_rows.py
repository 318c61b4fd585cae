"""Many rows of input against float64, and the tiles that they are cut into."""

from types import SimpleNamespace

import pytest
import torch
from tests.kernels.triton.test_linear import assert_near, linear, make, on, random
from tests.stored_weights import definition, grouped, random_codes
from torch import Tensor

from spqlm.formats import StoredWeight
from spqlm.kernels.triton import tiles
from spqlm.kernels.triton.matrix import matrix_of

HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


def of_width(bits: int, rows: int, columns: int, size: int | None, dtype: torch.dtype):
    """A weight of so many bits and its values, as they are when each is rounded to the dtype."""
    if bits == 8:
        return make("per_channel", rows, columns, dtype)
    scale = random(2, rows, columns // (size or columns), dtype=dtype)
    stored = grouped(random_codes(rows, columns, bits, seed=1), scale, f"int{bits}")
    return stored, definition(stored)


def product(device, x: Tensor, stored: StoredWeight, bias: Tensor | None, tile=None) -> Tensor:
    x, stored, bias = on(device, x, stored, bias)
    return linear.multiply_tiles(x, matrix_of(stored, bias), tile)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("size", [32, 64, None], ids=str)
def test_every_width(device, bits, size):
    stored, weight = of_width(bits, 37, 192, size, torch.bfloat16)
    x, bias = random(3, 70, 192, dtype=torch.bfloat16), random(4, 37, dtype=torch.bfloat16)
    y = product(device, x, stored, bias)
    assert_near(y, x.double() @ weight.T + bias.double(), torch.bfloat16)


@HALF
@pytest.mark.parametrize("tile", sorted({*tiles.WARP_TILES, *tiles.GROUP_TILES}), ids=str)
def test_every_tile_and_what_lies_beyond_its_edges(device, tile, dtype):
    stored, weight = of_width(4, 131, 128, 128, dtype)
    x = random(3, 2, 135, 128, dtype=dtype)
    assert_near(product(device, x, stored, None, tile), x.double() @ weight.T, dtype)


@HALF
def test_scales_in_another_dtype(device, dtype):
    stored, weight = of_width(5, 9, 96, 32, torch.float32)
    x = random(3, 65, 96, dtype=dtype)
    assert_near(product(device, x, stored, None), x.double() @ weight.T, dtype)


def test_columns_that_no_tile_divides(device):
    stored, weight = make("per_tensor", 9, 70, torch.bfloat16)
    x = random(3, 65, 70, dtype=torch.bfloat16)
    assert_near(product(device, x, stored, None), x.double() @ weight.T, torch.bfloat16)


def test_weights_are_rounded_as_they_are_when_written_out(device):
    [stored] = on(device, of_width(4, 7, 64, 32, torch.bfloat16)[0])
    x = torch.eye(64, dtype=torch.bfloat16, device=device).repeat(2, 1)
    matrix = matrix_of(stored, None)
    found = linear.multiply_tiles(x, matrix)[:64].T
    assert torch.equal(found, linear.dequantized(matrix, torch.bfloat16))


def test_the_same_call_gives_the_same_bits(device):
    stored, _ = of_width(3, 9, 96, 32, torch.bfloat16)
    x = random(3, 65, 96, dtype=torch.bfloat16)
    assert torch.equal(product(device, x, stored, None), product(device, x, stored, None))


@pytest.fixture
def gpu(monkeypatch):
    """Say what kind of GPU there is."""

    def pretend(major: int, processors: int) -> torch.device:
        found = SimpleNamespace(major=major, multi_processor_count=processors)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)
        return torch.device("cuda", 0)

    remembered = (tiles.tiles_on, tiles._processors)
    for function in remembered:
        function.cache_clear()
    yield pretend
    for function in remembered:
        function.cache_clear()


@pytest.mark.parametrize(
    ("major", "rows", "count", "sides"),
    [
        (9, 4096, 4096, (128, 256)),
        (9, 4096, 512, (128, 128)),
        (9, 4096, 128, (64, 64)),
        (9, 576, 65, (64, 64)),
        (8, 4096, 512, (128, 128)),
        (8, 1024, 128, (64, 64)),
        (12, 4096, 4096, (128, 128)),
    ],
)
def test_tiles_are_as_large_as_leaves_every_processor_work(gpu, major, rows, count, sides):
    tile = tiles.tile_for(rows, count, gpu(major, 132))
    assert (tile.rows, tile.height) == sides
