"""Codes for levels that are denser near zero, against float64."""

import pytest
import torch
from tests.kernels.triton.test_linear import DTYPES, assert_near, linear, on, random
from tests.kernels.triton.test_widths import make

from spqlm.kernels import triton
from spqlm.kernels.weights import NONLINEAR

KINDS = pytest.mark.parametrize("kind", NONLINEAR)


@KINDS
@DTYPES
@pytest.mark.parametrize("count", [1, 3, linear.FEW_ROWS + 1])
def test_products(device, kind, dtype, count):
    stored, weight = make(kind, 37, 192, 64, dtype)
    x, bias = random(3, count, 192, dtype=dtype), random(4, 37, dtype=dtype)
    y = linear.product(*on(device, x, stored, bias))
    assert_near(y, x.double() @ weight.T + bias.double(), dtype)


@pytest.mark.parametrize(("kind", "size"), [("nl2", 32), ("nl4", 128), ("nl5", 256)])
@pytest.mark.parametrize("count", [1, linear.FEW_ROWS + 1])
def test_other_groups_and_whole_rows(device, kind, size, count):
    stored, weight = make(kind, 9, 256, size, torch.bfloat16)
    x = random(3, count, 256, dtype=torch.bfloat16)
    assert_near(linear.product(*on(device, x, stored, None)), x.double() @ weight.T, x.dtype)


@KINDS
@DTYPES
def test_the_weight_is_written_out_exactly(device, kind, dtype):
    stored, weight = make(kind, 5, 96, 32, dtype)
    found = triton.restored(on(device, stored)[0], dtype)
    assert torch.equal(found.cpu(), weight.to(dtype))


@KINDS
def test_rows_of_a_table(device, kind):
    stored, weight = make(kind, 11, 96, 32, torch.float32)
    index = torch.tensor([10, 0, 3, 11, -1], device=device)
    rows = triton.take_rows(on(device, stored)[0], index).cpu()
    assert torch.equal(rows[:3], weight.float()[[10, 0, 3]])
    assert rows.isnan().all(1).tolist() == [False, False, False, True, True]


def test_tiles_are_rounded_as_what_is_written_out(device):
    [stored] = on(device, make("nl4", 7, 64, 32, torch.bfloat16)[0])
    x = torch.eye(64, dtype=torch.bfloat16, device=device).repeat(2, 1)
    matrix = linear.matrix_of(stored, None)
    found = linear.multiply_tiles(x, matrix)[:64].T
    assert torch.equal(found, linear.dequantized(matrix, torch.bfloat16))


def test_sums_of_parts_of_a_long_row(device):
    stored, weight = make("nl4", 40, 1536, 64, torch.bfloat16)
    x, bias = random(3, 1, 1536, dtype=torch.bfloat16), random(4, 40, dtype=torch.bfloat16)
    y = linear.product(*on(device, x, stored, bias))
    assert_near(y, x.double() @ weight.T + bias.double(), torch.bfloat16)
