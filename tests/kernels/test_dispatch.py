"""Which arithmetic runs when; its results are compared in the tests beside this one."""

import pytest
import torch
from torch._subclasses import FakeTensorMode

from spqlm import native
from spqlm.kernels import dispatch
from spqlm.kernels.group_sparse_linear import group_sparse_linear
from spqlm.kernels.int4_linear import int4_linear
from spqlm.kernels.int8_linear import int8_linear
from spqlm.modules.low_rank_linear import LowRankLinear
from spqlm.modules.ops import linear_from
from spqlm.modules.quantized_linear import QuantizedLinear
from spqlm.numerics import group_sparse, integer

OUT, IN = 48, 64
needs_library = pytest.mark.usefixtures("library")


@pytest.fixture(params=["int8", "int4"])
def layer(request):
    """The op, its codes and its scale."""
    generator = torch.Generator().manual_seed(0)
    if request.param == "int8":
        codes = torch.randint(-127, 128, (OUT, IN), generator=generator, dtype=torch.int8)
        return int8_linear, codes, torch.rand(OUT, generator=generator) + 0.1
    codes = torch.randint(-8, 8, (OUT, IN), generator=generator, dtype=torch.int8)
    return int4_linear, integer.pack_int4(codes), torch.rand(OUT, 2, generator=generator) - 0.5


@pytest.fixture
def taken(monkeypatch):
    """Names of the native functions that were called."""
    calls = []

    def recorded(name, function):
        def call(*arguments):
            y = function(*arguments)
            # The one that may decline did nothing then.
            if name != "linear_many" or y is not None:
                calls.append(name)
            return y

        return call

    for name in ("linear", "linear_many", "dequantize"):
        monkeypatch.setattr(native, name, recorded(name, getattr(native, name)))
    return calls


def x(*shape: int, dtype=torch.float32):
    return torch.randn(*shape, IN, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.fixture
def sparse():
    """A weight of which half of the groups are stored."""
    generator = torch.Generator().manual_seed(0)
    keep = torch.rand(OUT, IN // 16, generator=generator) < 0.5
    codes = torch.randint(-8, 8, (OUT, IN), generator=generator, dtype=torch.int8)
    scale = torch.rand(keep.shape, generator=generator) + 0.1
    return group_sparse.pack(codes, scale, None, keep, 4)


@needs_library
def test_group_sparse_weights_go_the_same_ways(sparse, taken):
    dense = group_sparse.dequantize(sparse)
    for count in (dispatch.FEW_ROWS_SPARSE, dispatch.FEW_ROWS_SPARSE + 1):
        y = group_sparse_linear(x(count), sparse, torch.ones(OUT))
        torch.testing.assert_close(y, x(count) @ dense.T + 1, atol=1e-5, rtol=1e-5)
    assert taken == ["linear", "dequantize"]
    apart = sparse._replace(codes=sparse.codes.repeat(1, 2)[:, : sparse.codes.shape[1]])
    y = group_sparse_linear(x(2), apart, None)
    torch.testing.assert_close(y, x(2) @ dense.T, atol=1e-5, rtol=1e-5)
    y = group_sparse_linear(x(2).double(), sparse, None)
    torch.testing.assert_close(y, x(2).double() @ dense.double().T)
    assert group_sparse_linear(x(0), sparse, None).shape == (0, OUT)
    with pytest.raises(RuntimeError):
        group_sparse_linear(torch.zeros(2, IN - 16), sparse, None)
    assert taken == ["linear", "dequantize"]


@needs_library
@pytest.mark.parametrize("dtype", native.FLOATS, ids=str)
def test_few_rows_read_the_codes_and_many_dequantise(layer, taken, dtype):
    op, codes, scale = layer
    op(x(dispatch.FEW_ROWS, dtype=dtype), codes, scale.to(dtype), None)
    op(x(2, dispatch.FEW_ROWS // 2, dtype=dtype), codes, scale.to(dtype), None)
    assert taken == ["linear", "linear"]
    op(x(dispatch.MANY_ROWS + 1, dtype=dtype), codes, scale.to(dtype), None)
    assert taken == ["linear", "linear", "dequantize"]
    op(x(dispatch.FEW_ROWS + 1, dtype=dtype), codes, scale.to(dtype), None)
    pairs = native.instruction_set(native.library()).endswith("_bf16")
    assert taken[3:] == ["linear_many" if pairs and dtype == torch.bfloat16 else "dequantize"]


@needs_library
@pytest.mark.parametrize("height", [1, 5, 16, 48, 100])
def test_many_rows_in_blocks_of_the_weight(layer, taken, monkeypatch, height):
    op, codes, scale = layer
    bias = torch.randn(OUT)
    monkeypatch.setattr(dispatch, "BLOCK_BYTES", height * IN * 4 + 3)
    y = op(x(2, 20), codes, scale, bias)
    assert len(taken) == -(-OUT // height)
    expected = x(2, 20).double() @ integer.dequantize(codes, scale.double()).T + bias.double()
    torch.testing.assert_close(y.double(), expected, atol=2e-4, rtol=1e-5)


@needs_library
def test_gradients_go_through_autograd(layer, taken):
    op, codes, scale = layer
    for trained in (x(3).requires_grad_(), torch.zeros(OUT).requires_grad_()):
        bias = trained if trained.ndim == 1 else None
        y = op(x(3) if bias is not None else trained, codes, scale, bias)
        assert y.requires_grad
        y.sum().backward()
        assert trained.grad is not None
    # Two products, and one weight for the gradient of the input.
    assert taken == ["linear", "dequantize", "linear"]
    with torch.no_grad():
        op(x(3).requires_grad_(), codes, scale, None)
    assert taken[3:] == ["linear"]


@needs_library
@pytest.mark.parametrize("dtype", native.FLOATS, ids=str)
@pytest.mark.parametrize("rows", [3, 40])
def test_gradients_are_those_of_the_reference(layer, monkeypatch, dtype, rows):
    op, codes, scale = layer

    def gradients():
        leaves = [
            t.detach().clone().requires_grad_() for t in (x(rows, dtype=dtype), scale.to(dtype))
        ]
        y = op(leaves[0], codes, leaves[1], None)
        (y * torch.linspace(-1, 1, OUT, dtype=dtype)).sum().backward()
        return y.detach(), *(leaf.grad for leaf in leaves)

    found = gradients()
    monkeypatch.setattr(native, "library", lambda: None)
    for one, other in zip(found, gradients(), strict=True):
        assert one.dtype == other.dtype == dtype
        size = 4 * torch.finfo(dtype).eps * float(other.abs().max())
        torch.testing.assert_close(one, other, atol=max(size, 1e-5), rtol=0)


@needs_library
def test_inputs_in_any_layout_are_taken(layer, taken):
    op, codes, scale = layer
    wide = torch.randn(5, 2 * IN)
    y = op(wide[:, ::2], codes, scale, None)
    assert taken == ["linear"]
    assert torch.equal(y, op(wide[:, ::2].contiguous(), codes, scale, None))


def test_weights_that_kernels_cannot_address_go_to_the_reference(layer, taken):
    op, codes, scale = layer
    expected = op(x(3), codes, scale, None)
    taken.clear()
    apart = codes.T.contiguous().T
    spread = torch.stack((scale, scale), -1)[..., 0]
    assert not apart.is_contiguous()
    assert not spread.is_contiguous()
    for y in (op(x(3), apart, scale, None), op(x(3), codes, spread, None)):
        torch.testing.assert_close(y, expected, atol=1e-4, rtol=1e-5)
    assert not taken


def test_other_dtypes_devices_and_tracing_go_to_the_reference(layer, taken):
    op, codes, scale = layer
    y = op(x(3).double(), codes, scale.double(), None)
    torch.testing.assert_close(y, x(3).double() @ integer.dequantize(codes, scale.double()).T)
    assert op(x(3).to("meta"), codes.to("meta"), scale.to("meta"), None).shape == (3, OUT)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(tensor) for tensor in (x(3), codes, scale)]
        assert op(*fakes, None).shape == (3, OUT)
    assert not taken


def test_no_rows_give_no_rows(layer):
    op, codes, scale = layer
    assert op(x(0), codes, scale, None).shape == (0, OUT)
    assert op(x(2, 0), codes, scale, None).shape == (2, 0, OUT)


def test_a_wrong_width_is_an_error_and_not_a_crash(layer):
    op, codes, scale = layer
    with pytest.raises(RuntimeError):
        op(torch.zeros(2, IN - 2), codes, scale, None)


def low_rank() -> LowRankLinear:
    generator = torch.Generator().manual_seed(0)
    right = torch.randn(8, IN, generator=generator)
    left = torch.randn(OUT, 8, generator=generator)
    quantized = QuantizedLinear.from_weight(left, torch.ones(OUT), "per_channel")
    return LowRankLinear(linear_from(right, None), quantized)


@needs_library
def test_both_factors_in_one_call(taken):
    module = low_rank()
    y = module(x(3))
    assert taken == ["linear"]
    torch.testing.assert_close(y, module.left(module.right(x(3))), atol=1e-5, rtol=1e-5)


@needs_library
def test_a_factor_that_is_watched_is_called(taken):
    module = low_rank()
    seen = []
    module.left.register_forward_hook(lambda *args: seen.append(args))
    module(x(3))
    assert len(seen) == 1
    assert taken == ["linear"]


def test_a_low_rank_layer_trains(taken):
    module = low_rank()
    module.right.weight.requires_grad_()
    module(x(3)).sum().backward()
    assert module.right.weight.grad is not None
    # The factor that is not trained, and its weight for the gradient of what enters it.
    assert taken == ["linear", "dequantize"]
