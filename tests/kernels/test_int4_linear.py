import pytest
import torch
from torch import Tensor
from torch.nn import functional

from spqlm.kernels.int4_linear import int4_linear
from spqlm.numerics import integer

OUT, IN = 5, 24


def make(
    groups: int, *shape: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x [*shape, 24], unpacked codes [5, 24], scale [5, groups] of both signs, bias [5]."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*shape, IN, generator=generator).to(dtype)
    codes = torch.randint(-8, 8, (OUT, IN), generator=generator, dtype=torch.int8)
    # Multiples of 1/64: the same in every dtype.
    scale = torch.randint(1, 17, (OUT, groups), generator=generator) / 64
    scale *= torch.randint(0, 2, (OUT, groups), generator=generator) * 2 - 1
    bias = torch.randn(OUT, generator=generator).to(dtype)
    return x, codes, scale.to(dtype), bias


def dense(codes: Tensor, scale: Tensor) -> Tensor:
    """In the scale's dtype, differentiable in it."""
    return codes.to(scale.dtype) * scale.repeat_interleave(IN // scale.shape[1], 1)


def reference(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    bias = None if bias is None else bias.double()
    return functional.linear(x.double(), dense(codes, scale.double()), bias)


@pytest.fixture(params=[1, 3, 12], ids="{}_groups".format)
def groups(request) -> int:
    return request.param


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("shape", [(3,), (1,), (2, 3), (2, 1, 4), (), (0,)])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)]
)
def test_equals_the_dense_layer_in_float64(groups, with_bias, shape, dtype, tolerance):
    x, codes, scale, bias = make(groups, *shape, dtype=dtype)
    bias = bias if with_bias else None
    y = int4_linear(x, integer.pack_int4(codes), scale, bias)
    assert y.dtype == dtype
    assert y.shape == (*shape, OUT)
    expected = reference(x, codes, scale, bias)
    largest = float(expected.abs().max()) if expected.numel() else 0
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=tolerance * largest)


@pytest.mark.parametrize("trained", [True, False])
def test_scale_of_another_dtype_than_the_input_is_accepted(trained):
    x, codes, scale, bias = make(3, 4)
    packed = integer.pack_int4(codes)
    expected = int4_linear(x, packed, scale.clone().requires_grad_(trained), bias)
    half = scale.to(torch.bfloat16).requires_grad_(trained)
    y = int4_linear(x, packed, half, bias)
    assert y.dtype == torch.float32
    assert torch.equal(y, expected)
    if trained:
        y.sum().backward()
        assert half.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("trained", [True, False])
def test_half_precision_does_not_overflow_where_the_dense_layer_would_not(trained):
    x = torch.full((1, 4096), 100.0, dtype=torch.float16)
    packed = integer.pack_int4(torch.full((2, 4096), 7, dtype=torch.int8))
    scale = torch.full((2, 64), 2.0**-10, dtype=torch.float16)
    y = int4_linear(x.requires_grad_(trained), packed, scale, None)
    torch.testing.assert_close(y.detach(), torch.full((1, 2), 2800.0, dtype=torch.float16))


@pytest.mark.parametrize("shape", [(3,), (1,), (2, 3), (2, 1, 4), (), (0,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_equal_those_of_the_dense_formulation(groups, shape, dtype):
    x, codes, scale, bias = make(groups, *shape, dtype=dtype)
    found = [t.clone().requires_grad_() for t in (x, scale, bias)]
    expected = [t.clone().requires_grad_() for t in (x, scale, bias)]
    weights = torch.linspace(-1, 1, OUT, dtype=dtype)
    y = int4_linear(found[0], integer.pack_int4(codes), found[1], found[2])
    (y * weights).square().sum().backward()
    y = functional.linear(expected[0], dense(codes, expected[1]), expected[2])
    (y * weights).square().sum().backward()
    for leaf, other in zip(found, expected, strict=True):
        assert leaf.grad.dtype == dtype
        torch.testing.assert_close(leaf.grad, other.grad, rtol=1e-4, atol=1e-4)


def test_gradients_in_bfloat16_are_close_to_float64(groups):
    x, codes, scale, _ = make(groups, 4, dtype=torch.bfloat16)
    found = [t.clone().requires_grad_() for t in (x, scale)]
    int4_linear(found[0], integer.pack_int4(codes), found[1], None).sum().backward()
    expected = [t.double().requires_grad_() for t in (x, scale)]
    functional.linear(expected[0], dense(codes, expected[1])).sum().backward()
    for leaf, other in zip(found, expected, strict=True):
        assert leaf.grad.dtype == torch.bfloat16
        off = (leaf.grad - other.grad).abs().max()
        assert float(off) <= 2e-2 * float(other.grad.abs().max())


@pytest.mark.parametrize("trained", ["x", "scale", "both"])
def test_only_what_asks_for_a_gradient_gets_one(trained):
    x, codes, scale, _ = make(3, 4)
    x.requires_grad_(trained != "scale")
    scale.requires_grad_(trained != "x")
    int4_linear(x, integer.pack_int4(codes), scale, None).sum().backward()
    assert (x.grad is not None) == (trained != "scale")
    assert (scale.grad is not None) == (trained != "x")


@pytest.mark.parametrize("trains_scale", [True, False])
def test_no_float_copy_of_the_weight_is_kept_for_the_backward_pass(trains_scale):
    x, codes, scale, bias = make(3, 4)
    packed = integer.pack_int4(codes)
    x.requires_grad_()
    scale.requires_grad_(trains_scale)
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = int4_linear(x, packed, scale, bias)
    pointers = {t.data_ptr() for t in saved}
    allowed = {packed.data_ptr(), scale.data_ptr()} | ({x.data_ptr()} if trains_scale else set())
    assert packed.data_ptr() in pointers
    assert pointers <= allowed
    y.sum().backward()
    assert x.grad is not None


def test_nothing_is_recorded_where_nothing_is_trained():
    x, codes, scale, bias = make(3, 4)
    packed = integer.pack_int4(codes)
    assert not int4_linear(x, packed, scale, bias).requires_grad
    with torch.no_grad():
        assert not int4_linear(x.requires_grad_(), packed, scale, bias).requires_grad


def test_a_trained_bias_gets_its_gradient_alone():
    x, codes, scale, bias = make(3, 4)
    bias.requires_grad_()
    int4_linear(x, integer.pack_int4(codes), scale, bias).sum().backward()
    assert torch.equal(bias.grad, torch.full((OUT,), 4.0))
