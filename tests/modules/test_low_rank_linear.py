import pytest
import torch
from tests.stored_weights import random
from torch import Tensor

from spqlm.formats.int8 import Int8
from spqlm.formats.low_rank import LowRank, of_factors
from spqlm.modules.low_rank_linear import LowRankLinear
from spqlm.modules.ops import dense_weight, linear_of, select, with_weight
from spqlm.numerics import low_rank


def make(left: Tensor, right: Tensor, bias: Tensor | None) -> LowRankLinear:
    return linear_of(of_factors(left, right), bias)


@pytest.mark.parametrize("with_bias", [True, False])
def test_forward_equals_the_product_of_the_factors(with_bias):
    left, right, bias = random(7, 3), random(3, 9, seed=1), random(7, seed=2)
    layer = make(left, right, bias if with_bias else None)
    x = random(2, 4, 9, seed=3)
    expected = x @ (left @ right).T + (bias if with_bias else 0)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(dense_weight(layer), left @ right)
    assert (layer.in_features, layer.out_features, layer.rank) == (9, 7, 3)


def test_the_bias_is_the_left_factors():
    bias = random(7)
    layer = make(random(7, 3), random(3, 9), bias)
    assert torch.equal(layer.bias, bias)
    assert layer.bias is layer.left.bias
    assert layer.right.bias is None
    assert make(random(7, 3), random(3, 9), None).bias is None


def test_full_rank_factors_reproduce_the_layer():
    weight, x = random(6, 8), random(3, 8, seed=1)
    for place in ("left", "right", "both"):
        layer = make(*low_rank.truncate(weight, 6, place), None)
        torch.testing.assert_close(layer(x), x @ weight.T, rtol=1e-4, atol=1e-5)


def test_factors_are_held_without_a_copy():
    left, right = random(7, 3), random(3, 9)
    layer = make(left, right, None)
    assert layer.left.weight.data_ptr() == left.data_ptr()
    assert layer.right.weight.data_ptr() == right.data_ptr()
    assert set(layer.state_dict()) == {"left.weight", "right.weight"}


@pytest.mark.parametrize("bias", [True, False])
def test_an_empty_layer_takes_the_state_of_a_full_one(bias):
    full = make(random(7, 3), random(3, 9), random(7) if bias else None)

    def allocated(dtype: torch.dtype) -> LowRankLinear:
        held = torch.empty(7, dtype=dtype) if bias else None
        return linear_of(LowRank(rank=3, factor=None).empty(7, 9, dtype), held)

    empty = allocated(torch.float32)
    empty.load_state_dict(full.state_dict(), strict=True)
    assert (empty.in_features, empty.out_features, empty.rank) == (9, 7, 3)
    with torch.no_grad():
        assert torch.equal(empty(random(2, 9)), full(random(2, 9)))
    assert allocated(torch.float16).left.weight.dtype == torch.float16


def test_quantised_factors_keep_the_sizes_the_bias_and_the_weight():
    layer = make(random(7, 3), random(3, 9, seed=1), random(7, seed=2))
    dense = dense_weight(layer)
    for part in ("right", "left"):
        factor = layer.get_submodule(part)
        layer.set_submodule(part, with_weight(factor, Int8().nearest(factor.weight.detach())))
    assert (layer.in_features, layer.out_features, layer.rank) == (9, 7, 3)
    assert torch.equal(layer.bias, random(7, seed=2))
    assert torch.equal(dense_weight(layer), layer.left.dequantize() @ layer.right.dequantize())
    torch.testing.assert_close(dense_weight(layer), dense, rtol=0, atol=0.1)
    weights = layer.left.codes.double(), layer.left.scale.double()
    layer.half()
    assert torch.equal(layer.left.codes.double(), weights[0])
    assert torch.equal(layer.left.scale.double(), weights[1])


@pytest.mark.parametrize("side", ["output", "input"])
def test_a_cut_below_the_rank_leaves_a_dense_layer(side):
    layer = make(random(7, 4), random(4, 9, seed=1), random(7, seed=2))
    index = torch.tensor([0, 2, 5])
    cut = select(layer, side, index)
    assert type(cut) is torch.nn.Linear
    whole = dense_weight(layer)
    assert torch.equal(cut.weight, whole[index] if side == "output" else whole[:, index])
    assert torch.equal(cut.bias, layer.bias[index] if side == "output" else layer.bias)
