"""Sparse kernels against their definition in float64, for every instruction set of this machine."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.stored_weights import definition, random_codes
from torch import Tensor

from spqlm import native
from spqlm.formats import group_sparse
from spqlm.formats.group_sparse import GroupSparseWeight
from spqlm.kernels.weights import GROUP_SIZES, Schedule, matrix_of, sparse_linear

ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-10}


def weight(
    keep: Tensor, size: int, bits: int = 4, zero: bool = False, dtype=torch.bfloat16
) -> GroupSparseWeight:
    """Random codes in the groups of `keep`, bool [rows, groups]; scales of both signs."""
    generator = torch.Generator().manual_seed(keep.numel() + size)
    rows, groups = keep.shape
    codes = random_codes(rows, groups * size, bits, seed=keep.numel() + size)
    scale = torch.rand(keep.shape, generator=generator) / 8 + 0.01
    scale *= torch.randint(0, 2, keep.shape, generator=generator) * 2 - 1
    zeros = torch.randn(keep.shape, generator=generator) / 8 if zero else None
    return group_sparse.pack(codes, scale, zeros, keep, bits).cast(dtype)


def some(rows: int, groups: int, share: float) -> Tensor:
    generator = torch.Generator().manual_seed(rows + groups)
    return torch.rand(rows, groups, generator=generator) < share


def x(count: int, columns: int, dtype=torch.bfloat16) -> Tensor:
    return torch.randn(count, columns, generator=torch.Generator().manual_seed(count)).to(dtype)


def assert_close(
    y: Tensor,
    inputs: Tensor,
    stored: GroupSparseWeight,
    bias: Tensor | None,
    of_weights: float = 0.0,
) -> None:
    """`of_weights`: what rounding may have taken from each of them."""
    dense = definition(stored)
    add = 0 if bias is None else bias.double()
    expected = inputs.double() @ dense.T + add
    assert y.dtype == inputs.dtype
    # Errors of a sum grow with what is summed, not with what is left of it. A zero is added after
    # its group's codes, so these count apart.
    parts = dense.abs()
    if stored.zero is not None and len(stored.zero):
        parts = parts + 2 * float(stored.zero.abs().max())
    size = inputs.double().abs() @ parts.T + (0 if bias is None else bias.double().abs())
    wrong = (y.double() - expected).abs()
    rounding = (2e-6 + of_weights) * size + ROUNDING[y.dtype] * expected.abs()
    assert bool((wrong <= rounding + 1e-6).all())


def of_weights(library, inputs: Tensor, stored: GroupSparseWeight) -> float:
    """Tiles, which several inputs take where there are some, have weights in bfloat16."""
    tiled = native.instruction_set(library) == "amx_bf16" and stored.columns % 32 == 0
    several = len(inputs) > 4 and inputs.dtype == torch.bfloat16
    return 2**-9 if tiled and several else 0.0


def check(library, stored: GroupSparseWeight, counts, dtype=torch.bfloat16, bias=None) -> None:
    matrix = matrix_of(stored, bias)
    for count in counts:
        inputs = x(count, stored.columns, dtype)
        y = native.linear(library, inputs, matrix)
        assert_close(y, inputs, stored, bias, of_weights(library, inputs, stored))
        for schedule in Schedule:
            y = sparse_linear(library, inputs, matrix, schedule)
            assert_close(y, inputs, stored, bias)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("size", GROUP_SIZES)
@pytest.mark.parametrize("zero", [False, True])
def test_products(library, instruction_set, bits, size, zero):
    stored = weight(some(37, 13, 0.5), size, bits, zero)
    check(library, stored, (1, 3, 17, 50, 67), bias=torch.randn(37))


@pytest.mark.parametrize("dtype", native.FLOATS, ids=str)
@pytest.mark.parametrize("stored_type", native.FLOATS, ids=str)
def test_float_types(library, instruction_set, dtype, stored_type):
    for bits in (4, 8):
        stored = weight(some(9, 20, 0.6), 16, bits, zero=True, dtype=stored_type)
        check(library, stored, (1, 2), dtype, torch.randn(9).to(stored_type))


def test_every_number_of_inputs(library, instruction_set):
    check(library, weight(some(5, 11, 0.5), 16), range(1, 19))


@pytest.mark.parametrize(
    "keep",
    [
        torch.tensor([[True]]),
        torch.zeros(3, 9, dtype=torch.bool),
        torch.ones(3, 64, dtype=torch.bool),
        torch.eye(70, 9, dtype=torch.bool),
        torch.eye(9, 70, dtype=torch.bool).flip(0),
        torch.cat((torch.zeros(8, 5), torch.ones(1, 5), torch.zeros(8, 5))).bool(),
    ],
    ids=["one", "none", "all", "empty rows behind", "one each", "one row"],
)
def test_masks(library, instruction_set, keep):
    check(library, weight(keep, 16), (1, 4), bias=torch.randn(len(keep)))


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("schedule", Schedule)
@pytest.mark.parametrize(
    "keep",
    [some(300, 70, 0.5), torch.arange(300)[:, None] % 100 < torch.ones(1, 70)],
    ids=["even", "all in few rows"],
)
def test_threads_share_the_work_without_changing_it(
    library, instruction_set, two_threads, schedule, keep
):
    stored = weight(keep, 64)
    matrix = matrix_of(stored, None)
    inputs = x(3, stored.columns)
    two = sparse_linear(library, inputs, matrix, schedule)
    again = sparse_linear(library, inputs, matrix, schedule)
    torch.set_num_threads(1)
    one = sparse_linear(library, inputs, matrix, schedule)
    assert torch.equal(two, one)
    assert torch.equal(two, again)
    assert_close(two, inputs, stored, None)


def test_a_row_longer_than_a_task_and_than_a_chunk(library, instruction_set):
    """Tasks that begin inside it, end inside it, and do both."""
    keep = torch.cat((some(2, 3000, 0.1), some(1, 3000, 0.99), some(2, 3000, 0.5)))
    check(library, weight(keep, 64), (1, 2), bias=torch.randn(5))


@pytest.mark.parametrize("out", native.FLOATS, ids=str)
@pytest.mark.parametrize("size", GROUP_SIZES)
def test_dequantize(library, instruction_set, out, size):
    for bits, zero in ((4, False), (4, True), (8, False), (8, True)):
        stored = weight(some(40, 1100 // size, 0.5), size, bits, zero)
        rows = torch.full((20, stored.columns), torch.nan, dtype=out)
        native.dequantize(library, matrix_of(stored, None), 10, 30, rows)
        expected = definition(stored)[10:30]
        # Of the sum of both parts, of which little may be left.
        wrong = (rows.double() - expected).abs()
        assert bool((wrong <= ROUNDING[out] * expected.abs() + 2e-7).all())
        assert bool((rows[expected == 0] == 0).all())


def test_nothing_is_read_or_written_beyond_the_tensors(library, instruction_set):
    """Neighbours that are NaN, or codes that would count, stay out of the sums."""
    for size in GROUP_SIZES:
        inner = weight(some(5, 13, 0.6), size, zero=True)
        kept, nan = len(inner.codes), torch.nan
        odd = torch.full((kept * size // 2 + 9,), 255, dtype=torch.uint8)
        codes = odd[3 : 3 + kept * size // 2].view(kept, -1).copy_(inner.codes)
        scale = torch.full((kept + 5,), nan, dtype=torch.bfloat16)[1 : kept + 1].copy_(inner.scale)
        zero = torch.full((kept + 5,), nan, dtype=torch.bfloat16)[3 : kept + 3].copy_(inner.zero)
        mask = torch.full((7, 2), 255, dtype=torch.uint8)[1:6].copy_(inner.mask)
        padded = torch.full((4, inner.columns), nan, dtype=torch.bfloat16)
        inputs = padded[1:3].copy_(x(2, inner.columns))
        stored = replace(inner, codes=codes, scale=scale, zero=zero, mask=mask)
        out = torch.full((4, 5), 7.0, dtype=torch.bfloat16)
        library.spq_linear(
            matrix_of(stored, None), None, inputs.data_ptr(), 1, 2, out[1:3].data_ptr(), 1
        )
        assert_close(out[1:3], inputs, inner, None)
        assert bool((out[[0, 3]] == 7.0).all())


def test_sparse_factors_of_a_low_rank_weight(library, instruction_set):
    right, left = weight(some(32, 6, 0.5), 16), weight(some(50, 2, 0.7), 16)
    inputs = x(3, right.columns)
    y = native.linear(library, inputs, matrix_of(left, None), matrix_of(right, None))
    expected = inputs.double() @ definition(right).T @ definition(left).T
    off = (y.double() - expected).abs().max()
    assert float(off) <= 4 * 2**-8 * float(expected.abs().max())


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_mask(data):
    library = native.library()
    if library is None:
        pytest.skip("the native library is not built")
    rows, groups = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 40))
    counts = st.lists(st.booleans(), min_size=rows * groups, max_size=rows * groups)
    keep = torch.tensor(data.draw(counts)).view(rows, groups)
    size, bits = data.draw(st.sampled_from(GROUP_SIZES)), data.draw(st.sampled_from((4, 8)))
    stored = weight(keep, size, bits, data.draw(st.booleans()))
    stored.check()
    check(library, stored, (data.draw(st.integers(1, 5)),))
