import pytest
import torch
from torch import Tensor

from spqlm.modules.low_rank_linear import LowRankLinear
from spqlm.modules.ops import dense_weight
from spqlm.modules.quantized_linear import QuantizedLinear
from spqlm.numerics import low_rank


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("with_bias", [True, False])
def test_forward_equals_the_product_of_the_factors(with_bias):
    left, right, bias = random(7, 3), random(3, 9, seed=1), random(7, seed=2)
    layer = LowRankLinear.from_factors(left, right, bias if with_bias else None)
    x = random(2, 4, 9, seed=3)
    expected = x @ (left @ right).T + (bias if with_bias else 0)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(layer.dequantize(), left @ right)
    assert (layer.in_features, layer.out_features, layer.rank) == (9, 7, 3)


def test_the_bias_is_the_left_factors():
    bias = random(7)
    layer = LowRankLinear.from_factors(random(7, 3), random(3, 9), bias)
    assert torch.equal(layer.bias, bias)
    assert layer.bias is layer.left.bias
    assert layer.right.bias is None
    assert LowRankLinear.from_factors(random(7, 3), random(3, 9), None).bias is None


def test_full_rank_factors_reproduce_the_layer():
    weight, x = random(6, 8), random(3, 8, seed=1)
    for place in ("left", "right", "both"):
        layer = LowRankLinear.from_factors(*low_rank.truncate(weight, 6, place), None)
        torch.testing.assert_close(layer(x), x @ weight.T, rtol=1e-4, atol=1e-5)


def test_factors_are_held_without_a_copy():
    left, right = random(7, 3), random(3, 9)
    layer = LowRankLinear.from_factors(left, right, None)
    assert layer.left.weight.data_ptr() == left.data_ptr()
    assert layer.right.weight.data_ptr() == right.data_ptr()
    assert set(layer.state_dict()) == {"left.weight", "right.weight"}


@pytest.mark.parametrize("bias", [True, False])
def test_an_empty_layer_takes_the_state_of_a_full_one(bias):
    full = LowRankLinear.from_factors(random(7, 3), random(3, 9), random(7) if bias else None)
    empty = LowRankLinear.empty(9, 7, 3, bias=bias, dtype=torch.float32)
    empty.load_state_dict(full.state_dict(), strict=True)
    assert (empty.in_features, empty.out_features, empty.rank) == (9, 7, 3)
    with torch.no_grad():
        assert torch.equal(empty(random(2, 9)), full(random(2, 9)))
    assert LowRankLinear.empty(9, 7, 3, bias=bias, dtype=torch.float16).left.weight.dtype == (
        torch.float16
    )


def test_quantised_factors_keep_the_sizes_the_bias_and_the_weight():
    layer = LowRankLinear.from_factors(random(7, 3), random(3, 9, seed=1), random(7, seed=2))
    dense = layer.dequantize()
    layer.right = QuantizedLinear.from_weight(layer.right.weight.detach(), None, "per_channel")
    layer.left = QuantizedLinear.from_weight(
        layer.left.weight.detach(), layer.left.bias.detach(), "per_channel"
    )
    assert (layer.in_features, layer.out_features, layer.rank) == (9, 7, 3)
    assert torch.equal(layer.bias, random(7, seed=2))
    assert torch.equal(dense_weight(layer), layer.left.dequantize() @ layer.right.dequantize())
    torch.testing.assert_close(dense_weight(layer), dense, rtol=0, atol=0.1)
    weights = layer.left.codes.double(), layer.left.scale.double()
    layer.half()
    assert torch.equal(layer.left.codes.double(), weights[0])
    assert torch.equal(layer.left.scale.double(), weights[1])
