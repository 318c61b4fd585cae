"""Many inputs that are rounded to int8 as they come, times a matrix in int8, against float64."""

import pytest
import torch
from tests import stored_weights
from tests.stored_weights import random

from spqlm import native
from spqlm.kernels.weights import matrix_of

# What vectors of 16 and 64, tiles of 4 by 2 and 8 by 48 and panels of 48 leave over.
SHAPES = [(1, 3), (2, 16), (47, 33), (48, 64), (97, 200)]
COUNTS = (1, 4, 17, 63)
SETS = ("avx512_bf16", "avx512", "avx2")
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-10}


def int8(rows, columns, *, alone=True):
    codes = random(rows, columns).mul(40).clamp(-127, 127).to(torch.int8)
    return stored_weights.int8(codes, random(rows if alone else 1).abs() / 64 + 1e-3)


@pytest.fixture
def product(library, instruction_set):
    """The product, with the sets that have it."""
    if instruction_set not in SETS:
        pytest.skip(f"{instruction_set} has no such kernel")

    def run(x, weight, bias=None):
        y = native.linear_int8_inputs(library, x, matrix_of(weight, bias))
        assert y is not None
        return y

    return run


def wanted(x, weight, bias=None):
    step = (x.float().abs().amax(-1, keepdim=True) / 127).clamp_min(2.0**-126)
    codes = (x.float() / step).round().double()
    y = codes @ weight.codes.double().T * step.double() * weight.scale.double()
    return y if bias is None else y + bias.double()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
@pytest.mark.parametrize("count", COUNTS)
def test_equals_the_sums_of_integers(product, rows, columns, count, dtype):
    x = (random(count, columns) * 3).to(dtype)
    for alone in (True, False):
        weight = int8(rows, columns, alone=alone)
        bias = random(rows).to(dtype) if alone else None
        found, exact = product(x, weight, bias), wanted(x, weight, bias)
        assert found.dtype == dtype and found.shape == (count, rows)
        close = TOLERANCE[dtype] * float(exact.abs().max())
        torch.testing.assert_close(found.double(), exact, rtol=0, atol=close)


def test_sums_go_on_where_a_piece_of_columns_or_of_inputs_ends(product):
    x, weight = random(300, 4200), int8(50, 4200)
    exact = wanted(x, weight)
    close = TOLERANCE[torch.float32] * float(exact.abs().max())
    torch.testing.assert_close(product(x, weight).double(), exact, rtol=0, atol=close)


def test_the_largest_sums_do_not_overflow(product):
    columns = 1 << 17
    weight = stored_weights.int8(torch.full((2, columns), -127, dtype=torch.int8), torch.ones(2))
    found = product(torch.ones(3, columns), weight)
    assert torch.equal(found, torch.full((3, 2), -127.0 * columns))


def test_zeros_and_what_is_not_finite(product):
    x = random(4, 40)
    x[1] = 0
    x[2, 7], x[3, 39] = float("nan"), float("inf")
    found = product(x, int8(5, 40))
    assert torch.equal(found[1], torch.zeros(5))
    assert torch.isfinite(found[0]).all() and found[2:].isnan().all()


def test_other_formats_and_wider_ones_are_declined(library):
    wide = stored_weights.int8(torch.zeros(1, (1 << 17) + 1, dtype=torch.int8), torch.ones(1))
    for weight in (stored_weights.dense(random(4, 16)), wide):
        x = torch.zeros(20, weight.shape[1])
        assert native.linear_int8_inputs(library, x, matrix_of(weight, None)) is None
