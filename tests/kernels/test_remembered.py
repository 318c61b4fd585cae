"""A layer's products on a GPU are prepared once; a stand-in for the kernels counts how often."""

import copy
import pickle

import pytest
import torch
from tests.stored_weights import int8, random, random_codes

from spqlm.kernels import remembered
from spqlm.modules.linear import CompressedLinear


class Kernels:
    """Stands for spqlm.kernels.triton, and multiplies in PyTorch."""

    def __init__(self):
        self.prepared = 0

    def ready(self, x, weight, bias):
        if x.numel() > 4 * x.shape[-1]:
            return None
        self.prepared += 1
        return lambda given: weight.product(given, bias)


@pytest.fixture
def kernels(monkeypatch):
    kernels = Kernels()
    monkeypatch.setattr(remembered, "kernels_for", lambda x: kernels)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    with torch.no_grad():
        yield kernels


@pytest.fixture
def layer():
    return CompressedLinear(int8(random_codes(9, 64, 8), random(9).float()), random(9).float())


def check(layer, x):
    expected = torch.nn.functional.linear(x, layer.dequantize().to(x.dtype), layer.bias.to(x.dtype))
    torch.testing.assert_close(layer(x), expected, rtol=1e-2, atol=1e-2 * expected.abs().max())


def test_a_layer_decides_once_for_each_shape_and_dtype(kernels, layer):
    for turn in range(3):
        check(layer, random(1, 1, 64, seed=turn).float())
    assert kernels.prepared == 1
    check(layer, random(3, 64).float())
    check(layer, random(3, 64).bfloat16())
    assert kernels.prepared == 3


def test_tensors_that_move_or_change_are_noticed(kernels, layer):
    x = random(1, 64).float()
    check(layer, x)
    layer.scale.data = 2 * layer.scale.data
    check(layer, x)
    layer.bias = torch.nn.Parameter(random(9, seed=7).float())
    check(layer, x)
    layer.scale.data = layer.scale.data.bfloat16()
    check(layer, x)
    assert kernels.prepared == 4
    layer.scale.mul_(2)
    check(layer, x)
    assert kernels.prepared == 5
    check(layer, x)
    assert kernels.prepared == 5


def test_tensors_made_in_inference_mode_are_remembered(kernels):
    with torch.inference_mode():
        layer = CompressedLinear(int8(random_codes(9, 64, 8), random(9).float()), random(9).float())
        for _ in range(2):
            check(layer, random(1, 64).float())
    assert kernels.prepared == 1


def test_copies_begin_anew(kernels, layer):
    x = random(1, 64).float()
    check(layer, x)
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        copied.scale.mul_(3)
        check(copied, x)
        check(layer, x)
    assert kernels.prepared == 3


def test_many_rows_gradients_and_gaps_are_for_others(kernels, layer, monkeypatch):
    check(layer, random(5, 64).float())
    check(layer, random(2, 128).float()[:, ::2])
    with torch.enable_grad():
        check(layer, random(1, 64).float())
    assert not kernels.prepared
    monkeypatch.setattr(remembered, "kernels_for", lambda x: None)
    check(layer, random(1, 64).float())


def test_a_cpu_asks_nothing(layer, monkeypatch):
    monkeypatch.setattr(remembered.Remembered, "product", None)
    with torch.no_grad():
        check(layer, random(1, 64).float())
