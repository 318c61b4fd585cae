"""The kernels against float64; compiled where there is a GPU, else in Triton's interpreter."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.stored_weights import definition, random_codes

from spqlm.formats import group_sparse
from spqlm.formats.group_sparse import GroupSparseWeight

sparse_linear = pytest.importorskip(
    "spqlm.kernels.triton.sparse_linear", reason="triton is not installed"
)

ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def make(
    rows: int,
    groups: int,
    size: int,
    bits: int,
    *,
    density: float = 0.5,
    with_zero: bool = False,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> GroupSparseWeight:
    """One row keeps all of its groups, and the first and one of the middle rows none."""
    generator = torch.Generator().manual_seed(seed)
    keep = torch.rand(rows, groups, generator=generator) < density
    keep[rows // 3] = True
    keep[[0, rows // 2]] = False
    keep[-1, -1] = True
    codes = random_codes(rows, groups * size, bits, seed + 1)
    scale, zero = torch.randn(2, rows, groups, generator=generator).to(dtype)
    return group_sparse.pack(codes, scale, zero if with_zero else None, keep, bits)


def on(device: torch.device, weight: GroupSparseWeight) -> GroupSparseWeight:
    return replace(weight, **{name: t.to(device) for name, t in weight.tensors().items()})


def assert_equals_definition(device, weight, shape, dtype, with_bias=False):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(*shape, weight.columns, generator=generator).to(dtype)
    bias = torch.randn(len(weight.mask), generator=generator).to(dtype) if with_bias else None
    y = sparse_linear.sparse_product(
        x.to(device), on(device, weight), None if bias is None else bias.to(device)
    )
    expected = x.double() @ definition(weight).T
    if bias is not None:
        expected += bias.double()
    assert y.dtype == dtype
    assert y.shape == expected.shape
    bound = ROUNDING[dtype] * float(expected.abs().max())
    torch.testing.assert_close(y.cpu().double(), expected, rtol=0, atol=bound)


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("shape", [(1,), (2, 2), (17,)], ids=str)
@pytest.mark.parametrize(
    ("bits", "with_zero", "with_bias"),
    [(4, False, False), (4, True, True), (8, False, True), (8, True, False)],
)
def test_equals_the_definition(device, bits, with_zero, with_bias, shape, dtype):
    weight = make(7, 11, 16, bits, with_zero=with_zero, dtype=dtype)
    assert_equals_definition(device, weight, shape, dtype, with_bias)


@pytest.mark.parametrize("size", [8, 16, 32, 64])
@pytest.mark.parametrize("bits", [4, 8])
def test_groups_of_every_size(device, size, bits):
    assert_equals_definition(device, make(4, 11, size, bits), (2,), torch.float32)


def test_rows_of_several_tiles(device):
    assert_equals_definition(device, make(5, 100, 8, 8, density=0.8), (2,), torch.float32)


@pytest.mark.filterwarnings("ignore:invalid value")
def test_what_a_row_does_not_keep_never_touches_it(device):
    weight = make(3, 4, 16, 4)
    weight.mask[0] = 0b0011
    weight = group_sparse.pack(
        torch.ones(3, 64, dtype=torch.int8), torch.ones(3, 4), None, weight.keep, 4
    )
    x = torch.ones(1, 64, device=device)
    x[:, 32:] = torch.inf
    assert sparse_linear.sparse_product(x, on(device, weight), None)[0, 0] == 32


def test_numbers_of_groups_are_made_once_and_again_for_another_mask(device):
    weight = on(device, make(4, 11, 16, 4))
    numbers = sparse_linear.group_numbers(weight.mask, weight.groups)
    assert numbers.tolist() == weight.keep.nonzero()[:, 1].tolist()
    negative = replace(weight, scale=-weight.scale)
    assert sparse_linear.group_numbers(negative.mask, negative.groups) is numbers
    weight.mask.copy_(weight.mask.flip(0))
    again = sparse_linear.group_numbers(weight.mask, weight.groups)
    assert again.tolist() == weight.keep.nonzero()[:, 1].tolist()


@pytest.mark.parametrize("count", [1, 2])
def test_what_is_prepared_multiplies_other_inputs(device, count):
    weight = make(4, 11, 16, 4, with_zero=True)
    given = [torch.full((count, weight.columns), value) for value in (1.0, 2.0)]
    prepared = sparse_linear.ready(given[0].to(device), on(device, weight), None)
    for x in given:
        found = prepared(x.to(device)).cpu().double()
        torch.testing.assert_close(found, x.double() @ definition(weight).T, rtol=1e-5, atol=1e-3)
    many = torch.ones(sparse_linear.FEW_ROWS + 1, weight.columns, device=device)
    assert sparse_linear.ready(many, on(device, weight), None) is None


@settings(max_examples=10)
@given(
    rows=st.integers(2, 9),
    groups=st.integers(1, 20),
    size=st.sampled_from([8, 16, 32, 64]),
    bits=st.sampled_from([4, 8]),
    density=st.floats(0, 1),
    count=st.sampled_from([1, 2, 17]),
    seed=st.integers(0, 99),
)
def test_any_shape_and_density(device, rows, groups, size, bits, density, count, seed):
    weight = make(rows, groups, size, bits, density=density, seed=seed)
    assert_equals_definition(device, weight, (count,), torch.float32)


def test_the_same_call_gives_the_same_bits(device):
    weight = make(4, 11, 16, 4)
    call = (torch.ones(1, weight.columns, device=device), on(device, weight), None)
    first = sparse_linear.sparse_product(*call)
    assert torch.equal(first, sparse_linear.sparse_product(*call))


@pytest.mark.parametrize("count", [sparse_linear.FEW_ROWS, sparse_linear.FEW_ROWS + 1])
def test_the_weight_is_written_out_for_many_rows_only(device, count, monkeypatch):
    written = []
    inner = sparse_linear.dequantized
    monkeypatch.setattr(sparse_linear, "dequantized", lambda *a: (written.append(1), inner(*a))[1])
    weight = make(3, 3, 8, 4)
    assert_equals_definition(device, weight, (count,), torch.float32)
    assert bool(written) == (count > sparse_linear.FEW_ROWS)


def test_what_no_kernel_takes_is_left_to_pytorch(device):
    weight = on(device, make(4, 8, 16, 4, with_zero=True))
    x = torch.ones(2, weight.columns, device=device)
    assert sparse_linear.sparse_product(x, weight, None) is not None
    refused = {
        "float64": (x.double(), weight, None),
        "no rows": (x[:0], weight, None),
        "another width": (x[:, :-8], weight, None),
        "half a group": (x[:, :-8], replace(weight, columns=weight.columns - 8), None),
        "a mask of more columns": (x.repeat(1, 2), replace(weight, columns=256), None),
        "groups of 4": (x, replace(weight, codes=weight.codes[:, :2].contiguous()), None),
        "a scale that does not fit": (x, replace(weight, scale=weight.scale[1:]), None),
        "a zero that does not fit": (x, replace(weight, zero=weight.zero[1:]), None),
        "offsets of other rows": (x, replace(weight, offsets=weight.offsets[1:]), None),
        "a mask of other bits": (x, replace(weight, mask=0 * weight.mask), None),
        "a bias that does not fit": (x, weight, x[0, :3]),
        "gaps": (x, replace(weight, codes=weight.codes.T.contiguous().T), None),
    }
    for reason, call in refused.items():
        assert sparse_linear.sparse_product(*call) is None, reason
