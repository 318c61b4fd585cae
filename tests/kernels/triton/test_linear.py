"""The kernels against float64; compiled where there is a GPU, else in Triton's interpreter."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import stored_weights
from tests.stored_weights import definition, random_codes
from torch import Tensor

from spqlm.formats import Layout, StoredWeight
from spqlm.formats._grouped import GroupedWeight

linear = pytest.importorskip("spqlm.kernels.triton.linear", reason="triton is not installed")

ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
DTYPES = pytest.mark.parametrize("dtype", ROUNDING, ids=str)
BIAS = pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no_bias"])


def random(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def make(kind: str, rows: int, columns: int, dtype: torch.dtype) -> tuple[StoredWeight, Tensor]:
    """A weight as it is stored, and in float64.

    `kind` is dense, per_channel, per_tensor, or the group size of 4-bit codes.
    """
    if kind == "dense":
        weight = stored_weights.dense(random(1, rows, columns, dtype=dtype))
    elif kind in ("per_channel", "per_tensor"):
        scale = random(2, rows if kind == "per_channel" else 1, dtype=dtype) / 64
        weight = stored_weights.int8(random_codes(rows, columns, 8, seed=1), scale)
    else:
        scale = random(2, rows, columns // int(kind), dtype=dtype)
        weight = stored_weights.int4(random_codes(rows, columns, 4, seed=1), scale)
    return weight, definition(weight)


def on(device: torch.device, *given: StoredWeight | Tensor | None) -> list:
    return [None if each is None else moved(each, lambda t: t.to(device)) for each in given]


def moved(given: StoredWeight | Tensor, move: Callable[[Tensor], Tensor]) -> StoredWeight | Tensor:
    if isinstance(given, Tensor):
        return move(given)
    return replace(given, **{name: move(tensor) for name, tensor in given.tensors().items()})


def assert_near(y: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert y.dtype == dtype
    assert y.shape == expected.shape
    largest = float(expected.abs().max())
    torch.testing.assert_close(y.cpu().double(), expected, rtol=0, atol=ROUNDING[dtype] * largest)


@pytest.fixture(
    params=[("per_channel", 200), ("per_tensor", 70), ("32", 96), ("64", 192), ("128", 384)],
    ids=lambda param: param[0],
)
def kind_and_columns(request):
    return request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["per_channel", "64"])
def test_tensors_that_begin_between_two_words(device, kind, dtype):
    stored, weight = make(kind, 5, 128, dtype)
    x = random(3, 1, 128, dtype=dtype)
    shift = lambda t: torch.cat([t.new_zeros(1), t.flatten()]).to(device)[1:].view(t.shape)  # noqa: E731
    y = linear.product(shift(x), replace(*on(device, stored), codes=shift(stored.codes)), None)
    assert_near(y, x.double() @ weight.T, dtype)


@pytest.mark.parametrize("kind", ["per_channel", "64"])
def test_sums_of_parts_of_a_long_row(device, kind):
    stored, weight = make(kind, 40, 1536, torch.bfloat16)
    x, bias = random(3, 3, 1536, dtype=torch.bfloat16), random(4, 40, dtype=torch.bfloat16)
    y = linear.product(*on(device, x, stored, bias))
    assert_near(y, x.double() @ weight.T + bias.double(), torch.bfloat16)


@DTYPES
@BIAS
@pytest.mark.parametrize("shape", [(1,), (2, 3), (65,)], ids=str)
def test_equals_the_definition(device, kind_and_columns, shape, dtype, with_bias):
    kind, columns = kind_and_columns
    rows = 37
    stored, weight = make(kind, rows, columns, dtype)
    x, bias = random(3, *shape, columns, dtype=dtype), random(4, rows, dtype=dtype)
    bias = bias if with_bias else None
    y = linear.product(*on(device, x, stored, bias))
    expected = x.double() @ weight.T
    assert_near(y, expected if bias is None else expected + bias.double(), dtype)


def test_one_vector_gives_one(device):
    stored, weight = make("64", 5, 128, torch.float32)
    x = random(3, 128, dtype=torch.float32)
    assert_near(linear.product(*on(device, x, stored, None)), x.double() @ weight.T, x.dtype)


@DTYPES
def test_a_bias_and_a_scale_in_another_dtype(device, dtype):
    stored, weight = make("per_channel", 9, 40, torch.bfloat16)
    x, bias = random(3, 2, 40, dtype=dtype), random(4, 9, dtype=torch.bfloat16)
    y = linear.product(*on(device, x, stored, bias))
    assert_near(y, x.double() @ weight.T + bias.double(), dtype)


@DTYPES
@pytest.mark.parametrize("count", [1, 2, linear.FEW_ROWS, linear.FEW_ROWS + 1])
def test_the_weight_is_written_out_for_many_rows_of_float32_only(device, count, dtype, monkeypatch):
    written = []
    inner = linear.dequantized
    monkeypatch.setattr(linear, "dequantized", lambda *a: (written.append(1), inner(*a))[1])
    stored, weight = make("64", 5, 128, dtype)
    x = random(3, count, 128, dtype=dtype)
    assert_near(linear.product(*on(device, x, stored, None)), x.double() @ weight.T, x.dtype)
    assert bool(written) == (count > linear.FEW_ROWS and dtype == torch.float32)


@settings(max_examples=10)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 600),
    count=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_int8_of_any_shape(device, rows, columns, count, seed):
    stored, weight = make("per_channel", rows, columns, torch.float32)
    x = random(seed, count, columns, dtype=torch.float32)
    assert_near(linear.product(*on(device, x, stored, None)), x.double() @ weight.T, x.dtype)


@settings(max_examples=10)
@given(
    rows=st.integers(1, 40),
    groups=st.integers(1, 9),
    size=st.sampled_from([32, 64, 128]),
    count=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_int4_of_any_shape(device, rows, groups, size, count, seed):
    stored, weight = make(str(size), rows, groups * size, torch.float32)
    x = random(seed, count, groups * size, dtype=torch.float32)
    assert_near(linear.product(*on(device, x, stored, None)), x.double() @ weight.T, x.dtype)


@DTYPES
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("right", ["dense", "per_channel", "32"])
@pytest.mark.parametrize("left", ["dense", "per_tensor", "32"])
def test_both_factors(device, right, left, count, dtype):
    inner, right_weight = make(right, 32, 64, dtype)
    outer, left_weight = make(left, 21, 32, dtype)
    x, bias = random(3, count, 64, dtype=dtype), random(4, 21, dtype=dtype)
    y = linear.low_rank(*on(device, x, inner, outer, bias))
    expected = x.double() @ right_weight.T @ left_weight.T + bias.double()
    assert_near(y, expected, dtype)


def test_the_vector_between_factors_is_not_rounded(device):
    # 64 times 60000 is beyond float16.
    x = torch.full((1, 64), 60000.0, dtype=torch.float16)
    right = torch.ones(2, 64, dtype=torch.float16)
    left = torch.tensor([[1.0, -1.0], [0.01, 0.0]], dtype=torch.float16)
    factors = [stored_weights.dense(factor) for factor in (right, left)]
    y = linear.low_rank(*on(device, x, *factors, None))
    assert y.cpu().tolist() == [[0.0, pytest.approx(38400, rel=2e-3)]]


def test_the_same_call_gives_the_same_bits(device, kind_and_columns):
    kind, columns = kind_and_columns
    stored, _ = make(kind, 37, columns, torch.float32)
    for count in (1, 5):
        call = on(device, random(3, count, columns, dtype=torch.float32), stored, None)
        assert torch.equal(linear.product(*call), linear.product(*call))


def test_inputs_in_any_layout(device):
    stored, weight = make("per_channel", 9, 40, torch.float32)
    x = random(3, 2, 80, dtype=torch.float32)
    y = linear.product(x.to(device)[:, ::2], *on(device, stored, None))
    assert_near(y, x[:, ::2].double() @ weight.T, torch.float32)


def test_what_no_kernel_takes_is_left_to_pytorch(device):
    [weight] = on(device, make("64", 4, 128, torch.float32)[0])
    codes, scale = weight.codes, weight.scale
    x = torch.ones(2, 128, device=device)
    assert linear.product(x, weight, None) is not None
    in_groups = stored_weights.packed_int4
    refused = {
        "float64": (x.double(), weight),
        "no rows": (x[:0], weight),
        "another width": (x[:, :64], weight),
        "gaps": (x, replace(weight, codes=codes.T.contiguous().T)),
        "groups of 16": (x, in_groups(codes, scale.repeat_interleave(4, 1))),
        "groups of 24": (
            x[:, :72],
            in_groups(codes[:, :36].contiguous(), torch.ones(4, 3, device=device)),
        ),
        "a scale that does not fit": (x, replace(weight, scale=scale[:3])),
        "a kind that nobody knows": (x, Unknown(weight.format, codes, scale)),
        "int4's codes as another kind's": (x, Other(weight.format, codes, scale)),
    }
    for reason, (inputs, stored) in refused.items():
        assert linear.product(inputs, stored, None) is None, reason


class Unknown(GroupedWeight):
    """The tensors of int4, which mean something else."""

    def layout(self) -> Layout:
        return super().layout()._replace(kind="table4")


class Other(GroupedWeight):
    """The same under the name of a kind that there are kernels for."""

    def layout(self) -> Layout:
        return super().layout()._replace(kind="int8")
