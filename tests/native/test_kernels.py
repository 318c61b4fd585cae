"""Every kernel against its definition in float64, for every instruction set of this machine."""

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests import stored_weights
from tests.instruction_sets import chosen, in_fixed_point
from tests.stored_weights import definition, dense, random_codes
from torch import Tensor

from spqlm import native
from spqlm.formats import StoredWeight
from spqlm.kernels.weights import GROUPED, matrix_of
from spqlm.numerics import integer
from spqlm.numerics.packing import MULTIPLE

# Rows of input: one, and what tiles of four and of sixteen and batches of 64 leave over.
COUNTS = (1, 2, 3, 7, 17, 50, 67)
# Half a unit in the last place, for the rounding of the output; sums are in float32.
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-10}
SHAPES = [(1, 2), (3, 30), (5, 64), (70, 96), (33, 576), (8, 1000)]


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def int8(rows: int, columns: int, per_row: bool, dtype: torch.dtype) -> StoredWeight:
    scale = (random(rows if per_row else 1).abs() + 0.1) / 64
    return stored_weights.int8(random_codes(rows, columns, 8), scale.to(dtype))


def grouped(
    rows: int, columns: int, size: int, dtype: torch.dtype, kind: str = "int4"
) -> StoredWeight:
    scale = random(rows, columns // size) / 8
    return stored_weights.grouped(random_codes(rows, columns, GROUPED[kind]), scale.to(dtype), kind)


def fits(columns: int, kind: str) -> bool:
    return GROUPED[kind] == 4 or columns % MULTIPLE == 0


def exact(x: Tensor, whole: Tensor, bias: Tensor | None) -> Tensor:
    product = x.double() @ whole.T
    return product if bias is None else product + bias.double()


def assert_product(library, x: Tensor, weight: StoredWeight, bias=None) -> None:
    y = native.linear(library, x, matrix_of(weight, bias))
    whole = definition(weight)
    expected = exact(x, whole, bias)
    assert y.dtype == x.dtype
    assert y.shape == expected.shape
    # Errors of a sum grow with what is summed, not with what is left of it.
    size = exact(x.abs(), whole.abs(), None if bias is None else bias.abs())
    wrong = (y.double() - expected).abs()
    allowed = 2e-6 * size + ROUNDING[x.dtype] * expected.abs() + 1e-7
    if x.dtype == torch.bfloat16 and in_fixed_point(library, weight.format.name):
        # In fixed point, what is small beside the largest of a block is rounded (pairs.h).
        allowed += 2**-15 * x.double().abs().amax(1, keepdim=True) * whole.norm(dim=1)
    assert bool((wrong <= allowed).all())


@pytest.fixture(params=ROUNDING, ids=str)
def dtype(request) -> torch.dtype:
    return request.param


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("per_row", [True, False])
def test_int8(library, instruction_set, dtype, shape, per_row):
    weight = int8(*shape, per_row, dtype)
    for count in COUNTS:
        x = random(count, shape[1], dtype=dtype)
        assert_product(library, x, weight)
        assert_product(library, x, weight, random(shape[0]))


@pytest.mark.parametrize(
    ("columns", "size"),
    [
        (2, 2),
        (30, 6),
        (96, 16),
        (96, 32),
        (192, 64),
        (576, 64),
        (640, 128),
        (512, 256),
        (96, 48),
        (288, 96),
    ],
)
def test_int4(library, instruction_set, dtype, columns, size):
    weight = grouped(37, columns, size, dtype)
    for count in COUNTS:
        x = random(count, columns, dtype=dtype)
        assert_product(library, x, weight)
        assert_product(library, x, weight, random(37, dtype=dtype))


@pytest.mark.parametrize("kind", [kind for kind in GROUPED if kind != "int4"])
@pytest.mark.parametrize(
    ("columns", "size"),
    [(16, 16), (96, 32), (112, 112), (144, 48), (320, 64), (576, 576), (640, 128), (2304, 256)],
)
def test_planes(library, instruction_set, dtype, kind, columns, size):
    """Whole blocks and shorter last ones, groups in blocks and blocks in groups."""
    weight = grouped(37, columns, size, dtype, kind)
    for count in COUNTS:
        x = random(count, columns, dtype=dtype)
        assert_product(library, x, weight, random(37, dtype=dtype) if count % 2 else None)


@settings(deadline=None, max_examples=60)
@given(
    kind=st.sampled_from(sorted(GROUPED)),
    groups=st.integers(1, 9),
    sixteens=st.integers(1, 17),
    rows=st.integers(1, 19),
    count=st.integers(1, 20),
    kernels=st.sampled_from(native.INSTRUCTION_SETS),
    half=st.booleans(),
)
def test_codes_of_any_shape(kind, groups, sixteens, rows, count, kernels, half):
    library = native.library()
    assume(library is not None and library.spq_runs_here(kernels.encode()))
    dtype, columns = torch.bfloat16 if half else torch.float32, 16 * sixteens * groups
    weight = grouped(rows, columns, 16 * sixteens, dtype, kind)
    with chosen(kernels):
        assert_product(library, random(count, columns, dtype=dtype), weight)
        found = torch.empty(rows, columns)
        native.dequantize(library, matrix_of(weight, None), 0, rows, found)
    assert torch.equal(found, definition(weight).float())


@pytest.mark.parametrize("scale_type", ROUNDING, ids=str)
def test_scale_of_another_type_than_the_input(library, instruction_set, dtype, scale_type):
    assert_product(library, random(2, 128, dtype=dtype), int8(9, 128, True, scale_type))
    for kind, size in (("int4", 64), ("int3", 64), ("int6", 128), ("nl5", 64)):
        weight = grouped(9, 256, size, scale_type, kind)
        assert_product(library, random(2, 256, dtype=dtype), weight)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dense(library, instruction_set, dtype, shape):
    weight, bias = random(*shape, dtype=dtype), random(shape[0], dtype=dtype)
    for count in COUNTS:
        assert_product(library, random(count, shape[1]), dense(weight), bias)
        assert_product(library, random(count, shape[1], dtype=dtype), dense(weight), bias)


def test_two_factors_equal_one_after_the_other(library, instruction_set, dtype):
    right, left = int8(20, 96, True, dtype), grouped(50, 20, 4, dtype)
    x = random(3, 96, dtype=dtype)
    bias = random(50)
    y = native.linear(library, x, matrix_of(left, bias), matrix_of(right, None))
    between = exact(x, definition(right), None)
    expected = exact(between, definition(left), bias)
    off = (y.double() - expected).abs().max()
    assert float(off) <= 4 * ROUNDING[dtype] * float(expected.abs().max())


@pytest.mark.parametrize("count", [2, 6])
def test_no_address_needs_to_be_aligned(library, instruction_set, count):
    columns = 160
    wide = int8(21, columns, True, torch.bfloat16)
    coded = [grouped(21, columns, 32, torch.bfloat16, kind) for kind in GROUPED]
    for offset in (1, 3, 7):
        shift = lambda t: torch.cat([t.new_zeros(offset), t.flatten()])[offset:].view(t.shape)  # noqa: B023, E731
        shifted = torch.zeros(22, dtype=torch.bfloat16)[1:].copy_(wide.scale)
        x = torch.zeros(count * columns + 1, dtype=torch.bfloat16)[1:].view(count, columns)
        x.copy_(random(count, columns))
        assert_product(library, x, replace(wide, codes=shift(wide.codes), scale=shifted))
        for weight in coded:
            assert_product(library, x, replace(weight, codes=shift(weight.codes)))


@pytest.mark.parametrize("kind", GROUPED)
@pytest.mark.parametrize("count", [1, 2, 6])
def test_nothing_is_read_or_written_beyond_the_tensors(library, instruction_set, count, kind):
    """Neighbours that are NaN stay where they are and out of the sums."""
    weight = grouped(5, 96, 32, torch.bfloat16, kind)
    padded = torch.full((count + 4, 96), torch.nan, dtype=torch.bfloat16)
    padded[2:-2] = random(count, 96)
    scales = torch.full((7, 3), torch.nan, dtype=torch.bfloat16)
    scales[1:6] = weight.scale
    out = torch.full((count + 2, 5), 7.0, dtype=torch.bfloat16)
    matrix = matrix_of(replace(weight, scale=scales[1:6]), None)
    x, y = padded[2:-2], out[1:-1]
    library.spq_linear(matrix, None, x.data_ptr(), native.DTYPES[x.dtype], count, y.data_ptr(), 1)
    assert bool(torch.isfinite(y).all())
    assert bool((out[[0, -1]] == 7.0).all())


@pytest.mark.parametrize("out", ROUNDING, ids=str)
@pytest.mark.parametrize(("columns", "size"), [(2, 2), (30, 6), (96, 32), (640, 128)])
def test_dequantize_is_the_reference_rounded_once(library, instruction_set, out, columns, size):
    for weight in (
        int8(70, columns, True, torch.float32),
        int8(70, columns, False, torch.float32),
        *(
            grouped(70, columns, size, torch.float32, kind)
            for kind in GROUPED
            if fits(columns, kind)
        ),
    ):
        weight = replace(weight, scale=integer.round_scale(weight.scale))
        rows = torch.empty(40, columns, dtype=out)
        native.dequantize(library, matrix_of(weight, None), 20, 60, rows)
        assert torch.equal(rows, definition(weight).float().to(out)[20:60])


def test_float_types_convert_as_in_pytorch(library, instruction_set):
    """All finite 16-bit numbers there and back, and what lies between two of them."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.bfloat16, torch.float16):
        values = bits.view(dtype)
        values = values[torch.isfinite(values)][None]
        wide = torch.empty(values.shape)
        native.dequantize(library, matrix_of(dense(values), None), 0, 1, wide)
        assert torch.equal(wide, values.float())
        between = (wide[:, :-1] + wide[:, 1:]) / 2
        narrow = torch.empty(between.shape, dtype=dtype)
        native.dequantize(library, matrix_of(dense(between), None), 0, 1, narrow)
        assert torch.equal(narrow, between.to(dtype))


def test_threads_share_the_work_without_changing_it(library, instruction_set, dtype):
    weight = int8(1000, 512, True, torch.float32)
    x = random(6, 512, dtype=dtype)
    matrix = matrix_of(weight, None)
    one = native.linear(library, x, matrix)
    two = torch.empty_like(one)
    library.spq_linear(
        matrix,
        None,
        x.data_ptr(),
        native.DTYPES[dtype],
        6,
        two.data_ptr(),
        1 + torch.get_num_threads(),
    )
    assert torch.equal(one, two)
