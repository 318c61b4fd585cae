"""The kernels against float64; compiled where there is a GPU, else in Triton's interpreter."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spq.numerics import integer

sparse_linear = pytest.importorskip(
    "spq.kernels.triton.sparse_linear", reason="triton is not installed"
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
) -> tuple[list[Tensor | None], Tensor]:
    """What is stored (codes, scale, zero, mask, offsets), and the weight in float64.

    The first and one of the middle rows keep nothing, and one row all of its groups.
    """
    generator = torch.Generator().manual_seed(seed)
    keep = torch.rand(rows, groups, generator=generator) < density
    keep[rows // 3] = True
    keep[[0, rows // 2]] = False
    keep[-1, -1] = True
    kept = int(keep.sum())
    limit = 8 if bits == 4 else 127
    codes = torch.randint(-limit, limit, (kept, size), generator=generator, dtype=torch.int8)
    scale = torch.randn(kept, generator=generator).to(dtype)
    zero = torch.randn(kept, generator=generator).to(dtype) if with_zero else None
    padded = torch.zeros(rows, -(-groups // 8) * 8, dtype=torch.int32)
    padded[:, :groups] = keep
    mask = (padded.unflatten(1, (-1, 8)) << torch.arange(8)).sum(2).to(torch.uint8)
    offsets = torch.cat((torch.zeros(1), keep.sum(1).cumsum(0))).to(torch.int32)
    weight = torch.zeros(rows, groups, size, dtype=torch.float64)
    weight[keep] = codes.double() * scale.double()[:, None]
    if zero is not None:
        weight[keep] += zero.double()[:, None]
    stored = integer.pack_int4(codes) if bits == 4 else codes
    return [stored, scale, zero, mask, offsets], weight.flatten(1)


def on(device: torch.device, *tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor.to(device) for tensor in tensors]


def assert_equals_definition(device, stored, weight, shape, dtype, with_bias=False):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(*shape, weight.shape[1], generator=generator).to(dtype)
    bias = torch.randn(len(weight), generator=generator).to(dtype) if with_bias else None
    y = sparse_linear.sparse_product(*on(device, x, *stored, bias))
    expected = x.double() @ weight.T
    if bias is not None:
        expected += bias.double()
    assert y.dtype == dtype
    assert y.shape == expected.shape
    bound = ROUNDING[dtype] * float(expected.abs().max())
    torch.testing.assert_close(y.cpu().double(), expected, rtol=0, atol=bound)


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("shape", [(1,), (), (3,), (17,)], ids=str)
@pytest.mark.parametrize(("bits", "with_zero"), [(4, False), (4, True), (8, False), (8, True)])
def test_equals_the_definition(device, bits, with_zero, shape, dtype, with_bias):
    stored, weight = make(7, 11, 16, bits, with_zero=with_zero, dtype=dtype)
    assert_equals_definition(device, stored, weight, shape, dtype, with_bias)


@pytest.mark.parametrize("size", [8, 16, 32, 64])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("task_bytes", [64, 192, 1024])
def test_tasks_that_begin_and_end_inside_rows(device, monkeypatch, size, bits, task_bytes):
    monkeypatch.setattr(sparse_linear, "TASK_BYTES", task_bytes)
    stored, weight = make(7, 21, size, bits)
    assert_equals_definition(device, stored, weight, (2,), torch.float32)


def test_rows_longer_than_a_tile_and_tasks_longer_than_rows(device, monkeypatch):
    monkeypatch.setattr(sparse_linear, "TILE_BYTES", 128)
    for task_bytes in (64, 4096):
        monkeypatch.setattr(sparse_linear, "TASK_BYTES", task_bytes)
        stored, weight = make(5, 60, 8, 8)
        assert_equals_definition(device, stored, weight, (1,), torch.float32)


def test_more_rows_than_the_search_looks_at_together(device):
    stored, weight = make(300, 2, 8, 4, density=0.05)
    assert_equals_definition(device, stored, weight, (1,), torch.float32)


@settings(max_examples=15)
@given(
    rows=st.integers(2, 40),
    groups=st.integers(1, 40),
    size=st.sampled_from([8, 16, 32, 64]),
    bits=st.sampled_from([4, 8]),
    density=st.floats(0, 1),
    count=st.sampled_from([1, 2, 17]),
    seed=st.integers(0, 99),
)
def test_any_shape_and_density(device, rows, groups, size, bits, density, count, seed):
    stored, weight = make(rows, groups, size, bits, density=density, seed=seed)
    assert_equals_definition(device, stored, weight, (count,), torch.float32)


def test_the_same_call_gives_the_same_bits(device, monkeypatch):
    monkeypatch.setattr(sparse_linear, "TASK_BYTES", 64)
    stored, weight = make(7, 21, 16, 4)
    call = on(device, torch.ones(1, weight.shape[1]), *stored, None)
    first = sparse_linear.sparse_product(*call)
    assert torch.equal(first, sparse_linear.sparse_product(*call))


@pytest.mark.parametrize("count", [sparse_linear.FEW_ROWS, sparse_linear.FEW_ROWS + 1])
def test_the_weight_is_written_out_for_many_rows_only(device, count, monkeypatch):
    written = []
    inner = sparse_linear._dequantized
    monkeypatch.setattr(sparse_linear, "_dequantized", lambda *a: (written.append(1), inner(*a))[1])
    stored, weight = make(3, 3, 8, 4)
    assert_equals_definition(device, stored, weight, (count,), torch.float32)
    assert bool(written) == (count > sparse_linear.FEW_ROWS)


def test_what_no_kernel_takes_is_left_to_pytorch(device):
    stored, weight = make(4, 8, 16, 4, with_zero=True)
    codes, scale, zero, mask, offsets = on(device, *stored)
    x = torch.ones(2, weight.shape[1], device=device)
    assert sparse_linear.sparse_product(x, codes, scale, zero, mask, offsets, None) is not None
    refused = {
        "float64": (x.double(), codes, scale, zero, mask, offsets, None),
        "no rows": (x[:0], codes, scale, zero, mask, offsets, None),
        "another width": (x[:, :-8], codes, scale, zero, mask, offsets, None),
        "a width of another mask": (x.repeat(1, 2), codes, scale, zero, mask, offsets, None),
        "groups of 4": (x, codes[:, :2].contiguous(), scale, zero, mask, offsets, None),
        "a scale that does not fit": (x, codes, scale[1:], zero, mask, offsets, None),
        "a zero that does not fit": (x, codes, scale, zero[1:], mask, offsets, None),
        "offsets of other rows": (x, codes, scale, zero, mask, offsets[1:], None),
        "a bias that does not fit": (x, codes, scale, zero, mask, offsets, scale[:3]),
        "gaps": (x, codes.T.contiguous().T, scale, zero, mask, offsets, None),
    }
    for reason, call in refused.items():
        assert sparse_linear.sparse_product(*call) is None, reason
