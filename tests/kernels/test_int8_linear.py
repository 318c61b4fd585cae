import pytest
import torch
from torch import Tensor
from torch.nn import functional

from spqlm.kernels.int8_linear import int8_linear

SCALES = {"per_channel": 5, "per_tensor": 1}


def make(
    granularity: str, *shape: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x [*shape, 12], codes [5, 12], scale and bias [5]."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*shape, 12, generator=generator).to(dtype)
    codes = torch.randint(-127, 128, (5, 12), generator=generator, dtype=torch.int8)
    # Multiples of 1/256: the same in every dtype.
    scale = torch.randint(1, 17, (SCALES[granularity],), generator=generator) / 256
    bias = torch.randn(5, generator=generator).to(dtype)
    return x, codes, scale.to(dtype), bias


def reference(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    weight = codes.double() * scale.double()[:, None]
    return functional.linear(x.double(), weight, None if bias is None else bias.double())


@pytest.mark.parametrize("granularity", SCALES)
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("shape", [(3,), (1,), (2, 3), (2, 1, 4), ()])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)]
)
def test_equals_the_dense_layer_in_float64(granularity, with_bias, shape, dtype, tolerance):
    x, codes, scale, bias = make(granularity, *shape, dtype=dtype)
    bias = bias if with_bias else None
    expected = reference(x, codes, scale, bias)
    y = int8_linear(x, codes, scale, bias)
    assert y.dtype == dtype
    assert y.shape == (*shape, 5)
    assert float((y - expected).abs().max()) <= tolerance * float(expected.abs().max())


def test_scale_of_another_dtype_than_the_input_is_accepted():
    x, codes, scale, bias = make("per_channel", 3)
    expected = int8_linear(x, codes, scale, bias)
    y = int8_linear(x, codes, scale.to(torch.bfloat16), bias)
    assert y.dtype == torch.float32
    assert torch.equal(y, expected)


def test_half_precision_does_not_overflow_where_the_dense_layer_would_not():
    # Codes are hundreds of times larger than weights; their sum must not be formed in float16.
    x = torch.full((1, 64), 30.0, dtype=torch.float16)
    codes = torch.full((2, 64), 127, dtype=torch.int8)
    scale = torch.full((2,), 2.0**-10, dtype=torch.float16)
    expected = reference(x, codes, scale, None)
    for trained in (False, True):
        y = int8_linear(x.clone().requires_grad_(trained), codes, scale, None)
        torch.testing.assert_close(y.detach().double(), expected, rtol=2e-3, atol=0)


@pytest.mark.parametrize("granularity", SCALES)
@pytest.mark.parametrize("shape", [(3,), (1,), (2, 3), (2, 1, 4), ()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_equal_those_of_the_dense_formulation(granularity, shape, dtype):
    x, codes, scale, bias = make(granularity, *shape, dtype=dtype)
    leaves = [t.clone().requires_grad_() for t in (x, scale, bias)]
    dense = [t.clone().requires_grad_() for t in (x, scale, bias)]
    weights = torch.linspace(-1, 1, 5, dtype=dtype)
    (int8_linear(leaves[0], codes, leaves[1], leaves[2]) * weights).square().sum().backward()
    weight = codes.to(dtype) * dense[1][:, None]
    (functional.linear(dense[0], weight, dense[2]) * weights).square().sum().backward()
    for found, expected in zip(leaves, dense, strict=True):
        assert found.grad.dtype == dtype
        assert found.grad.shape == expected.grad.shape
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("granularity", SCALES)
def test_gradients_in_bfloat16_are_close_to_float64(granularity):
    x, codes, scale, _ = make(granularity, 4, dtype=torch.bfloat16)
    found = [t.clone().requires_grad_() for t in (x, scale)]
    int8_linear(found[0], codes, found[1], None).sum().backward()
    dense = [t.double().requires_grad_() for t in (x, scale)]
    functional.linear(dense[0], codes.double() * dense[1][:, None]).sum().backward()
    for leaf, expected in zip(found, dense, strict=True):
        assert leaf.grad.dtype == torch.bfloat16
        off = (leaf.grad - expected.grad).abs().max()
        assert float(off) <= 2e-2 * float(expected.grad.abs().max())


@pytest.mark.parametrize("trained", ["x", "scale", "both"])
def test_only_what_asks_for_a_gradient_gets_one(trained):
    x, codes, scale, _ = make("per_channel", 3)
    x.requires_grad_(trained != "scale")
    scale.requires_grad_(trained != "x")
    int8_linear(x, codes, scale, None).sum().backward()
    assert (x.grad is not None) == (trained != "scale")
    assert (scale.grad is not None) == (trained != "x")


@pytest.mark.parametrize("trains_scale", [True, False])
def test_no_float_copy_of_the_weight_is_kept_for_the_backward_pass(trains_scale):
    x, codes, scale, bias = make("per_channel", 3)
    x.requires_grad_()
    scale.requires_grad_(trains_scale)
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = int8_linear(x, codes, scale, bias)
    as_large = [tensor for tensor in saved if tensor.numel() >= codes.numel() and tensor is not x]
    weights = [tensor for tensor in as_large if tensor.shape != x.shape]
    assert [tensor.dtype for tensor in weights] == [torch.int8]
    assert weights[0].data_ptr() == codes.data_ptr()
    y.sum().backward()
    assert x.grad is not None


def test_nothing_is_recorded_where_nothing_is_trained():
    x, codes, scale, bias = make("per_channel", 3)
    assert not int8_linear(x, codes, scale, bias).requires_grad
    with torch.no_grad():
        assert not int8_linear(x.requires_grad_(), codes, scale, bias).requires_grad


def test_a_trained_bias_gets_its_gradient_alone():
    x, codes, scale, bias = make("per_channel", 3)
    bias.requires_grad_()
    int8_linear(x, codes, scale, bias).sum().backward()
    assert torch.equal(bias.grad, torch.full((5,), 3.0))
