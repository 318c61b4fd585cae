"""Which arithmetic runs when; its results are compared in the tests beside this one."""

from dataclasses import replace

import pytest
import torch
from tests.stored_weights import definition, dense, int4, int8, random_codes
from torch._subclasses import FakeTensorMode

from spqlm import native
from spqlm.formats import StoredWeight, group_sparse
from spqlm.formats.int8 import Int8
from spqlm.kernels import product
from spqlm.kernels.product import linear
from spqlm.modules.linear import CompressedLinear
from spqlm.modules.low_rank_linear import LowRankLinear
from spqlm.modules.ops import linear_from

OUT, IN = 48, 64
needs_library = pytest.mark.usefixtures("library")


@pytest.fixture(params=["int8", "int4"])
def weight(request) -> StoredWeight:
    generator = torch.Generator().manual_seed(0)
    if request.param == "int8":
        return int8(random_codes(OUT, IN, 8), torch.rand(OUT, generator=generator) + 0.1)
    return int4(random_codes(OUT, IN, 4), torch.rand(OUT, 2, generator=generator) - 0.5)


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
    scale = torch.rand(keep.shape, generator=generator) + 0.1
    return group_sparse.pack(random_codes(OUT, IN, 4), scale, None, keep, 4)


@needs_library
def test_group_sparse_weights_go_the_same_ways(sparse, taken):
    whole = sparse.restore()
    for count in (product.FEW_ROWS_SPARSE, product.FEW_ROWS_SPARSE + 1):
        y = linear(x(count), sparse, torch.ones(OUT))
        torch.testing.assert_close(y, x(count) @ whole.T + 1, atol=1e-5, rtol=1e-5)
    assert taken == ["linear", "dequantize"]
    apart = replace(sparse, codes=sparse.codes.repeat(1, 2)[:, : sparse.codes.shape[1]])
    y = linear(x(2), apart, None)
    torch.testing.assert_close(y, x(2) @ whole.T, atol=1e-5, rtol=1e-5)
    y = linear(x(2).double(), sparse, None)
    torch.testing.assert_close(y, x(2).double() @ definition(sparse).T)
    assert linear(x(0), sparse, None).shape == (0, OUT)
    with pytest.raises(RuntimeError):
        linear(torch.zeros(2, IN - 16), sparse, None)
    assert taken == ["linear", "dequantize"]


@needs_library
@pytest.mark.parametrize("dtype", native.FLOATS, ids=str)
def test_few_rows_read_the_codes_and_many_dequantise(weight, taken, dtype):
    weight = weight.cast(dtype)
    linear(x(product.FEW_ROWS, dtype=dtype), weight, None)
    linear(x(2, product.FEW_ROWS // 2, dtype=dtype), weight, None)
    assert taken == ["linear", "linear"]
    linear(x(product.MANY_ROWS + 1, dtype=dtype), weight, None)
    assert taken == ["linear", "linear", "dequantize"]
    linear(x(product.FEW_ROWS + 1, dtype=dtype), weight, None)
    pairs = native.instruction_set(native.library()).endswith("_bf16")
    assert taken[3:] == ["linear_many" if pairs and dtype == torch.bfloat16 else "dequantize"]


@needs_library
@pytest.mark.parametrize("height", [1, 5, 16, 48, 100])
def test_many_rows_in_blocks_of_the_weight(weight, taken, monkeypatch, height):
    bias = torch.randn(OUT)
    monkeypatch.setattr(product, "BLOCK_BYTES", height * IN * 4 + 3)
    y = linear(x(2, 20), weight, bias)
    assert len(taken) == -(-OUT // height)
    expected = x(2, 20).double() @ definition(weight).T + bias.double()
    torch.testing.assert_close(y.double(), expected, atol=2e-4, rtol=1e-5)


@needs_library
def test_gradients_go_through_autograd(weight, taken):
    for trained in (x(3).requires_grad_(), torch.zeros(OUT).requires_grad_()):
        bias = trained if trained.ndim == 1 else None
        y = linear(x(3) if bias is not None else trained, weight, bias)
        assert y.requires_grad
        y.sum().backward()
        assert trained.grad is not None
    # Two products, and one weight for the gradient of the input.
    assert taken == ["linear", "dequantize", "linear"]
    with torch.no_grad():
        linear(x(3).requires_grad_(), weight, None)
    assert taken[3:] == ["linear"]


@needs_library
@pytest.mark.parametrize("dtype", native.FLOATS, ids=str)
@pytest.mark.parametrize("rows", [3, 40])
def test_gradients_are_those_of_the_reference(weight, monkeypatch, dtype, rows):
    def gradients():
        scale = weight.scale.to(dtype).requires_grad_()
        leaves = [x(rows, dtype=dtype).requires_grad_(), scale]
        y = linear(leaves[0], replace(weight, scale=scale), None)
        (y * torch.linspace(-1, 1, OUT, dtype=dtype)).sum().backward()
        return y.detach(), *(leaf.grad for leaf in leaves)

    found = gradients()
    monkeypatch.setattr(native, "library", lambda: None)
    for one, other in zip(found, gradients(), strict=True):
        assert one.dtype == other.dtype == dtype
        size = 4 * torch.finfo(dtype).eps * float(other.abs().max())
        torch.testing.assert_close(one, other, atol=max(size, 1e-5), rtol=0)


@needs_library
def test_inputs_in_any_layout_are_taken(weight, taken):
    wide = torch.randn(5, 2 * IN)
    y = linear(wide[:, ::2], weight, None)
    assert taken == ["linear"]
    assert torch.equal(y, linear(wide[:, ::2].contiguous(), weight, None))


def test_weights_that_kernels_cannot_address_go_to_the_reference(weight, taken):
    expected = linear(x(3), weight, None)
    taken.clear()
    apart = replace(weight, codes=weight.codes.T.contiguous().T)
    spread = replace(weight, scale=torch.stack((weight.scale, weight.scale), -1)[..., 0])
    assert not apart.codes.is_contiguous()
    assert not spread.scale.is_contiguous()
    for y in (linear(x(3), apart, None), linear(x(3), spread, None)):
        torch.testing.assert_close(y, expected, atol=1e-4, rtol=1e-5)
    assert not taken


def test_other_dtypes_devices_and_tracing_go_to_the_reference(weight, taken):
    y = linear(x(3).double(), weight.cast(torch.float64), None)
    torch.testing.assert_close(y, x(3).double() @ definition(weight).T)

    def moved(move):
        return replace(weight, codes=move(weight.codes), scale=move(weight.scale))

    meta = moved(lambda tensor: tensor.to("meta"))
    assert linear(x(3).to("meta"), meta, None).shape == (3, OUT)
    with FakeTensorMode() as mode:
        assert linear(mode.from_tensor(x(3)), moved(mode.from_tensor), None).shape == (3, OUT)
    assert not taken


def test_torch_func_goes_to_the_reference(weight, taken):
    rows = x(4, 3)

    def loss(some):
        return linear(some, weight, None).square().sum()

    leaf = rows.clone().requires_grad_()
    loss(leaf).backward()
    expected = linear(rows, weight, None)
    taken.clear()
    found = torch.vmap(lambda some: linear(some, weight, None))(rows)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(torch.func.grad(loss)(rows), leaf.grad, atol=1e-3, rtol=1e-4)
    assert not taken


def test_no_rows_give_no_rows(weight):
    assert linear(x(0), weight, None).shape == (0, OUT)
    assert linear(x(2, 0), weight, None).shape == (2, 0, OUT)


def test_a_wrong_width_is_an_error_and_not_a_crash(weight):
    with pytest.raises(RuntimeError):
        linear(torch.zeros(2, IN - 2), weight, None)


def test_the_restored_weight_is_the_reference_rounded_once(weight, sparse, taken):
    for stored in (weight, sparse, dense(torch.eye(OUT, IN))):
        for dtype in native.FLOATS:
            found = product.restored(stored, dtype)
            assert found.dtype == dtype
            exact = definition(stored).to(dtype)
            torch.testing.assert_close(found, exact, rtol=torch.finfo(dtype).eps, atol=0)
        assert torch.equal(product.restored(stored, torch.float64), stored.restore(torch.float64))
    assert taken == (["dequantize"] * 9 if native.library() else [])


def low_rank() -> LowRankLinear:
    generator = torch.Generator().manual_seed(0)
    right = torch.randn(8, IN, generator=generator)
    left = torch.randn(OUT, 8, generator=generator)
    quantized = CompressedLinear(Int8().nearest(left), torch.ones(OUT))
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
