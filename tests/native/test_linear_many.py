"""Many inputs in bfloat16 times a weight of any format, against the definition in float64."""

from functools import partial

import pytest
import torch
from tests import stored_weights
from tests.stored_weights import definition, random, random_codes

from spqlm import native
from spqlm.formats import StoredWeight, group_sparse
from spqlm.kernels.weights import GROUPED, matrix_of

ROWS = (1, 15, 16, 47, 48, 97, 290)
# What tiles of 8, groups of 16 and 32, and runs of 256 inputs leave over.
COUNTS = (1, 7, 16, 24, 33, 255, 256, 270)
# Sets that have the product.
SETS = ("amx_bf16", "avx512_bf16")


def int8(rows: int, columns: int) -> StoredWeight:
    codes = random(rows, columns).mul(40).clamp(-127, 127).to(torch.int8)
    return stored_weights.int8(codes, random(rows).abs() / 64)


def grouped(kind: str, rows: int, columns: int, size: int = 32) -> StoredWeight:
    bits = GROUPED[kind]
    codes = random_codes(rows, columns, bits)
    return stored_weights.grouped(codes, random(rows, columns // size) / 2**bits, kind)


int2, int3, int4, int5, int6, int7 = (partial(grouped, f"int{bits}") for bits in range(2, 8))
nl3, nl4, nl5 = (partial(grouped, f"nl{bits}") for bits in range(3, 6))


def dense(rows: int, columns: int) -> StoredWeight:
    return stored_weights.dense(random(rows, columns))


def bfloat16(rows: int, columns: int) -> StoredWeight:
    return stored_weights.dense(random(rows, columns).to(torch.bfloat16))


def group_of_16(rows: int, columns: int) -> StoredWeight:
    keep = random(rows, columns // 16) > 0
    codes = random(rows, columns).mul(3).clamp(-8, 7).to(torch.int8)
    return group_sparse.pack(codes, random(*keep.shape).abs() / 8, None, keep, 4)


@pytest.fixture
def product(library, instruction_set):
    """The product, with the sets that have it."""
    if instruction_set not in SETS:
        pytest.skip(f"{instruction_set} has no such kernel")

    def run(x: torch.Tensor, weight: StoredWeight, bias=None) -> torch.Tensor:
        y = native.linear_many(library, x, matrix_of(weight, bias))
        assert y is not None
        return y

    def assert_close(y: torch.Tensor, x: torch.Tensor, weight: StoredWeight, bias=0.0):
        count = x.numel() // x.shape[-1]
        close(y, x, weight, bias, multiplies_codes(instruction_set, weight, count))

    run.assert_close = assert_close
    return run


def multiplies_codes(instruction_set: str, weight: StoredWeight, count: int) -> bool:
    """Whether scales multiply sums, so that weights are not rounded."""
    kind, columns = weight.format.name, weight.shape[1]
    if instruction_set == "amx_bf16":
        return kind == "int8"
    # WIDENED_* and most_widened in library.cpp.
    if kind == "int8":
        return 10 <= count <= (16 if columns < 2048 else 24)
    if kind not in GROUPED:
        return False
    size = columns // weight.tensors()["scale"].shape[1]
    return 8 <= count <= 16 and (128 % size == 0 or size % 128 == 0)


def close(y: torch.Tensor, x: torch.Tensor, weight: StoredWeight, bias, exact: bool):
    # Weights are rounded to bfloat16 on the way, as where PyTorch multiplies.
    whole = definition(weight).float()
    rounded = whole.double() if exact else whole.to(torch.bfloat16).double()
    expected = x.double() @ rounded.T + bias
    size = x.double().abs() @ rounded.abs().T + 1
    assert y.dtype == torch.bfloat16
    wrong = (y.double() - expected).abs()
    assert bool((wrong <= 2**-8 * expected.abs() + 4e-6 * size).all())


@pytest.mark.parametrize(
    "make", [int8, int2, int3, int4, int5, int6, int7, nl3, nl4, nl5, dense, group_of_16]
)
@pytest.mark.parametrize("columns", [32, 96, 576, 1056])
def test_equals_the_definition(product, make, columns):
    for rows in ROWS:
        weight = make(rows, columns)
        for count in COUNTS if rows == 47 else COUNTS[4:6]:
            x = random(count, columns, seed=1).to(torch.bfloat16)
            product.assert_close(product(x, weight), x, weight)


@pytest.mark.parametrize("size", [16, 64, 128, 192])
def test_groups_of_other_sizes(product, size):
    for count in (23, 33):
        x = random(count, 384, seed=1).to(torch.bfloat16)
        for make in (int3, int4, int6, nl5):
            weight = make(40, 384, size)
            product.assert_close(product(x, weight), x, weight)


@pytest.mark.parametrize("make", [int8, int4, int7, bfloat16, group_of_16])
@pytest.mark.parametrize("columns", [8320, 11008])
def test_more_columns_than_a_panel_holds(product, make, columns):
    """Sums of one part of the columns are added to those of the parts before."""
    for rows, count in ((130, 33), (33, 49), (33, 70)):
        weight = make(rows, columns)
        x = random(count, columns, seed=1).to(torch.bfloat16)
        product.assert_close(product(x, weight), x, weight)


def test_parts_of_the_columns_may_begin_inside_a_group(product):
    x = random(40, 8448, seed=1).to(torch.bfloat16)
    for make in (int4, int5):
        weight = make(130, 8448, 1056)
        product.assert_close(product(x, weight), x, weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_dense_halves_and_a_scale_for_the_whole_matrix(product, dtype):
    x = random(40, 96, seed=1).to(torch.bfloat16)
    weight = stored_weights.dense(random(70, 96).to(dtype))
    product.assert_close(product(x, weight), x, weight)
    codes = random(70, 96).mul(40).clamp(-127, 127).to(torch.int8)
    weight = stored_weights.int8(codes, torch.tensor([0.01]))
    product.assert_close(product(x, weight), x, weight)


@pytest.mark.parametrize("dtype", native.FLOATS, ids=str)
def test_with_a_bias(product, dtype):
    weight, bias = int8(50, 64), random(50, seed=2).to(dtype)
    x = random(2, 20, 64, seed=1).to(torch.bfloat16)
    y = product(x, weight, bias)
    assert y.shape == (2, 20, 50)
    product.assert_close(y, x, weight, bias.double())


def test_does_not_depend_on_the_number_of_threads(product):
    weight, x = int4(200, 192), random(100, 192).to(torch.bfloat16)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = product(x, weight)
        torch.set_num_threads(3)
        assert torch.equal(one, product(x, weight))
    finally:
        torch.set_num_threads(before)


def test_nothing_is_read_or_written_beyond_the_tensors(library, product):
    weight = int8(49, 96)
    padded = torch.full((21, 96), torch.nan, dtype=torch.bfloat16)
    padded[2:19] = random(17, 96)
    out = torch.full((19, 49), 7.0, dtype=torch.bfloat16)
    x, y = padded[2:19], out[1:18]
    assert library.spq_many(matrix_of(weight, None), x.data_ptr(), 17, y.data_ptr(), 1)
    product.assert_close(y, x, weight)
    assert bool((out[[0, 18]] == 7.0).all())


def test_declines_what_does_not_suit_it(library, instruction_set):
    narrow, whole = int8(16, 80), int8(16, 64)
    x = random(20, 80).to(torch.bfloat16)
    assert native.linear_many(library, x, matrix_of(narrow, None)) is None
    y = native.linear_many(library, x[:, :64].contiguous(), matrix_of(whole, None))
    assert (y is not None) == (instruction_set in SETS)
