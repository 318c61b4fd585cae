"""Many inputs in bfloat16 times a weight of any format, against the definition in float64."""

import pytest
import torch

from spqlm import native
from spqlm.native import sparse
from spqlm.numerics import group_sparse, integer

ROWS = (1, 15, 16, 47, 48, 97, 290)
# What tiles of 8, groups of 16 and 32, and runs of 256 inputs leave over.
COUNTS = (1, 7, 16, 33, 255, 256, 270)
# Sets that have the product.
SETS = ("amx_bf16", "avx512_bf16")


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def int8(rows: int, columns: int) -> tuple:
    codes = random(rows, columns).mul(40).clamp(-127, 127).to(torch.int8)
    scale = random(rows).abs() / 64
    return native.matrix_of(codes, scale, None), integer.dequantize(codes, scale), (codes, scale)


def int4(rows: int, columns: int) -> tuple:
    codes = random(rows, columns).mul(3).clamp(-8, 7).to(torch.int8)
    packed, scale = integer.pack_int4(codes), random(rows, columns // 32) / 8
    return native.matrix_of(packed, scale, None), integer.dequantize(packed, scale), (packed, scale)


def dense(rows: int, columns: int) -> tuple:
    weight = random(rows, columns)
    return native.matrix_of(weight, None, None), weight, (weight,)


def bfloat16(rows: int, columns: int) -> tuple:
    weight = random(rows, columns).to(torch.bfloat16)
    return native.matrix_of(weight, None, None), weight, (weight,)


def group_of_16(rows: int, columns: int) -> tuple:
    keep = random(rows, columns // 16) > 0
    codes = random(rows, columns).mul(3).clamp(-8, 7).to(torch.int8)
    weight = group_sparse.pack(codes, random(*keep.shape).abs() / 8, None, keep, 4)
    return sparse.matrix_of(weight, None), group_sparse.dequantize(weight), (weight,)


@pytest.fixture
def product(library, instruction_set):
    """The product, with the sets that have it."""
    if instruction_set not in SETS:
        pytest.skip(f"{instruction_set} has no such kernel")

    def run(x: torch.Tensor, matrix: native.Matrix) -> torch.Tensor:
        y = native.linear_many(library, x, matrix)
        assert y is not None
        return y

    # Scales of whole rows may multiply sums, so that int8 weights are not rounded.
    run.exact = instruction_set == "amx_bf16"
    return run


def assert_close(y: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias=0.0, exact=False):
    # Weights are rounded to bfloat16 on the way, as where PyTorch multiplies.
    rounded = weight.double() if exact else weight.to(torch.bfloat16).double()
    expected = x.double() @ rounded.T + bias
    size = x.double().abs() @ rounded.abs().T + 1
    assert y.dtype == torch.bfloat16
    wrong = (y.double() - expected).abs()
    assert bool((wrong <= 2**-8 * expected.abs() + 4e-6 * size).all())


@pytest.mark.parametrize("make", [int8, int4, dense, group_of_16])
@pytest.mark.parametrize("columns", [32, 96, 576, 1056])
def test_equals_the_definition(product, make, columns):
    for rows in ROWS:
        matrix, weight, _held = make(rows, columns)
        for count in COUNTS if rows == 47 else COUNTS[3:5]:
            x = random(count, columns, seed=1).to(torch.bfloat16)
            assert_close(product(x, matrix), x, weight, exact=product.exact and make is int8)


@pytest.mark.parametrize("size", [16, 64, 128, 192])
def test_groups_of_other_sizes(product, size):
    codes = random(40, 384).mul(3).clamp(-8, 7).to(torch.int8)
    packed, scale = integer.pack_int4(codes), random(40, 384 // size) / 8
    x = random(33, 384, seed=1).to(torch.bfloat16)
    y = product(x, native.matrix_of(packed, scale, None))
    assert_close(y, x, integer.dequantize(packed, scale))


@pytest.mark.parametrize("make", [int8, int4, bfloat16, group_of_16])
@pytest.mark.parametrize("columns", [8320, 11008])
def test_more_columns_than_a_panel_holds(product, make, columns):
    """Sums of one part of the columns are added to those of the parts before."""
    for rows, count in ((130, 33), (33, 70)):
        matrix, weight, _held = make(rows, columns)
        x = random(count, columns, seed=1).to(torch.bfloat16)
        assert_close(product(x, matrix), x, weight, exact=product.exact and make is int8)


def test_parts_of_the_columns_may_begin_inside_a_group(product):
    codes = random(130, 8448).mul(3).clamp(-8, 7).to(torch.int8)
    packed, scale = integer.pack_int4(codes), random(130, 8448 // 1056) / 8
    x = random(40, 8448, seed=1).to(torch.bfloat16)
    y = product(x, native.matrix_of(packed, scale, None))
    assert_close(y, x, integer.dequantize(packed, scale))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_dense_halves_and_a_scale_for_the_whole_matrix(product, dtype):
    x, weight = random(40, 96, seed=1).to(torch.bfloat16), random(70, 96).to(dtype)
    assert_close(product(x, native.matrix_of(weight, None, None)), x, weight)
    codes, scale = random(70, 96).mul(40).clamp(-127, 127).to(torch.int8), torch.tensor([0.01])
    y = product(x, native.matrix_of(codes, scale, None))
    assert_close(y, x, codes * scale, exact=product.exact)


@pytest.mark.parametrize("dtype", native.FLOATS, ids=str)
def test_with_a_bias(product, dtype):
    _, weight, (codes, scale) = int8(50, 64)
    bias = random(50, seed=2).to(dtype)
    x = random(2, 20, 64, seed=1).to(torch.bfloat16)
    y = product(x, native.matrix_of(codes, scale, bias))
    assert y.shape == (2, 20, 50)
    assert_close(y, x, weight, bias.double(), product.exact)


def test_does_not_depend_on_the_number_of_threads(product):
    matrix, _, _held = int4(200, 192)
    x = random(100, 192).to(torch.bfloat16)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = product(x, matrix)
        torch.set_num_threads(3)
        assert torch.equal(one, product(x, matrix))
    finally:
        torch.set_num_threads(before)


def test_nothing_is_read_or_written_beyond_the_tensors(library, product):
    matrix, weight, _held = int8(49, 96)
    padded = torch.full((21, 96), torch.nan, dtype=torch.bfloat16)
    padded[2:19] = random(17, 96)
    out = torch.full((19, 49), 7.0, dtype=torch.bfloat16)
    x, y = padded[2:19], out[1:18]
    assert library.spq_many(matrix, x.data_ptr(), 17, y.data_ptr(), 1)
    assert_close(y, x, weight, exact=product.exact)
    assert bool((out[[0, 18]] == 7.0).all())


def test_declines_what_does_not_suit_it(library, instruction_set):
    matrix, _, _held = int8(16, 80)
    assert native.linear_many(library, random(20, 80).to(torch.bfloat16), matrix) is None
    matrix, _, _held = int8(16, 64)
    y = native.linear_many(library, random(20, 64).to(torch.bfloat16), matrix)
    assert (y is not None) == (instruction_set in SETS)
