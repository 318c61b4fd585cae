import pytest
import torch
from torch import Tensor, nn

from spqlm.modules.quantized_linear import QuantizedLinear
from spqlm.numerics import integer

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def exact(layer: QuantizedLinear) -> Tensor:
    return layer.codes.double() * layer.scale.double()[:, None]


@pytest.fixture(params=["per_channel", "per_tensor"])
def granularity(request) -> str:
    return request.param


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_are_within_half_a_step_of_the_dense_ones(granularity, dtype):
    weight = random(6, 10).to(dtype)
    layer = QuantizedLinear.from_weight(weight, None, granularity)
    assert layer.granularity == granularity
    assert layer.codes.dtype == torch.int8
    assert layer.scale.dtype == dtype
    assert layer.scale.shape == ((6,) if granularity == "per_channel" else (1,))
    error = (exact(layer) - weight.double()).abs()
    assert bool((error <= layer.scale.double()[:, None] / 2 * (1 + 1e-4)).all())


def test_nothing_but_codes_scale_and_bias_is_held(granularity):
    layer = QuantizedLinear.from_weight(random(6, 10), random(6), granularity)
    assert set(layer.state_dict()) == {"codes", "scale", "bias"}
    assert set(dict(layer.named_parameters())) == {"codes", "scale", "bias"}
    assert not any(parameter.requires_grad for parameter in layer.parameters())
    layer(random(2, 10))
    assert {k for k, v in vars(layer).items() if isinstance(v, Tensor)} == set()
    assert not isinstance(layer, nn.Linear)
    assert not hasattr(layer, "weight")


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_cast_keeps_exactly_the_same_weights(granularity, dtype):
    layer = QuantizedLinear.from_weight(random(6, 10), None, granularity)
    weights, codes = exact(layer), layer.codes.clone()
    layer.to(dtype)
    assert layer.codes.dtype == torch.int8
    assert torch.equal(layer.codes, codes)
    assert layer.scale.dtype == dtype
    assert torch.equal(exact(layer), weights)
    assert torch.equal(exact(layer.float()), weights)


def test_half_and_bfloat16_casts_keep_codes_as_integers(granularity):
    layer = QuantizedLinear.from_weight(random(6, 10), random(6), granularity)
    weights = exact(layer)
    for cast in (layer.half, layer.bfloat16, layer.float):
        assert torch.equal(exact(cast()), weights)
        assert layer.codes.dtype == torch.int8


@pytest.mark.parametrize("dtype", DTYPES)
def test_forward_keeps_the_dtype_of_the_input(granularity, dtype):
    layer = QuantizedLinear.from_weight(random(6, 10), random(6), granularity).to(dtype)
    x = random(2, 3, 10, seed=1).to(dtype)
    expected = nn.functional.linear(x.double(), exact(layer), layer.bias.double())
    y = layer(x)
    assert y.dtype == dtype
    assert float((y - expected).abs().max()) <= 0.02 * float(expected.abs().max())


def test_dequantised_weight_has_the_scales_dtype(granularity):
    layer = QuantizedLinear.from_weight(random(6, 10), None, granularity)
    assert torch.equal(layer.dequantize().double(), exact(layer))
    assert layer.bfloat16().dequantize().dtype == torch.bfloat16
    assert not layer.dequantize().requires_grad


def test_from_tensors_holds_the_very_tensors(granularity):
    codes = torch.ones(3, 4, dtype=torch.int8)
    scale = torch.ones(3 if granularity == "per_channel" else 1)
    bias = random(3)
    layer = QuantizedLinear.from_tensors(codes, scale, bias)
    assert layer.granularity == granularity
    assert (layer.in_features, layer.out_features) == (4, 3)
    for held, given in ((layer.codes, codes), (layer.scale, scale), (layer.bias, bias)):
        assert held.data_ptr() == given.data_ptr()
    assert QuantizedLinear.from_tensors(codes, scale, None).bias is None


def test_a_layer_of_one_row_works_with_either_granularity(granularity):
    weight = random(1, 4)
    layer = QuantizedLinear.from_weight(weight, None, granularity)
    scale = integer.absmax_scale(weight, per_channel=True)
    assert torch.equal(layer.scale.detach(), scale)
    assert layer(random(3, 4)).shape == (3, 1)


def test_an_empty_layer_takes_the_state_of_a_full_one(granularity):
    full = QuantizedLinear.from_weight(random(6, 10), random(6), granularity).bfloat16()
    empty = QuantizedLinear(10, 6, bias=True, granularity=granularity, dtype=torch.bfloat16)
    empty.load_state_dict(full.state_dict(), strict=True)
    x = random(2, 10).bfloat16()
    assert torch.equal(empty(x), full(x))


def test_the_scale_can_be_trained(granularity):
    layer = QuantizedLinear.from_weight(random(6, 10), None, granularity)
    layer.scale.requires_grad_()
    layer(random(2, 10)).sum().backward()
    assert layer.scale.grad.shape == layer.scale.shape
    assert layer.codes.grad is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e9])
def test_weights_that_no_scale_can_hold_are_refused(granularity, bad):
    weight = random(3, 4)
    weight[1, 2] = bad
    with pytest.raises(ValueError, match="finite and at most"):
        QuantizedLinear.from_weight(weight, None, granularity)


def test_repr_says_what_the_layer_is(granularity):
    layer = QuantizedLinear.from_weight(random(3, 4), None, granularity)
    expected = f"in_features=4, out_features=3, bias=False, int8, {granularity}"
    assert repr(layer) == f"QuantizedLinear({expected})"
