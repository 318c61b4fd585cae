"""What the dispatcher does with CUDA tensors, which need no GPU to exist as fakes."""

import pytest
import torch
from torch._subclasses import FakeTensorMode

from spqlm.kernels import dispatch
from spqlm.kernels.group_sparse_linear import group_sparse_linear
from spqlm.kernels.int4_linear import int4_linear
from spqlm.kernels.int8_linear import int8_linear
from spqlm.numerics.group_sparse import GroupSparse

ANSWER = object()


class Kernels:
    """Stands for spqlm.kernels.triton."""

    def __init__(self, answer):
        self.answer = answer
        self.calls = []

    def __getattr__(self, name):
        return lambda *call: (self.calls.append(name), self.answer)[1]


@pytest.fixture
def use(monkeypatch):
    """Set what the dispatcher finds in the place of the kernels."""

    def set_kernels(kernels):
        monkeypatch.setitem(dispatch._on_gpu, "kernels", kernels)
        return kernels

    return set_kernels


@pytest.fixture
def cuda():
    """x [3, 64], codes, int8 [5, 64] and scale [5]."""
    with FakeTensorMode():
        codes = torch.empty(5, 64, dtype=torch.int8, device="cuda")
        yield torch.empty(3, 64, device="cuda"), codes, torch.empty(5, device="cuda")


def test_cuda_tensors_go_to_the_kernels_for_them(cuda, use):
    x, codes, scale = cuda
    kernels = use(Kernels(ANSWER))
    factor = (codes, scale, None)
    weight = GroupSparse(codes, scale, None, codes, codes, 64)
    assert int8_linear(x, *factor) is ANSWER
    assert int4_linear(x, *factor) is ANSWER
    assert dispatch.native_low_rank(x, factor, factor) is ANSWER
    assert group_sparse_linear(x, weight, None) is ANSWER
    assert kernels.calls == ["product", "product", "low_rank", "sparse_product"]


@pytest.mark.parametrize("kernels", [None, Kernels(None)], ids=["no triton", "refused"])
def test_what_they_do_not_take_is_computed_in_pytorch(cuda, use, kernels):
    use(kernels)
    assert int8_linear(*cuda, None).shape == (3, 5)


def test_the_real_kernels_refuse_fakes(cuda):
    pytest.importorskip("triton", reason="triton is not installed")
    assert int8_linear(*cuda, None).shape == (3, 5)


def test_gradients_and_tensors_elsewhere_are_none_of_theirs(cuda, use):
    x, codes, scale = cuda
    kernels = use(Kernels(ANSWER))
    factors = (codes, scale.clone().requires_grad_(), None), (codes, scale, None)
    assert dispatch.native_low_rank(x, *factors) is None
    int8_linear(x.cpu(), codes.cpu(), scale.cpu(), None)
    assert not kernels.calls


def test_without_triton_there_is_one_warning(monkeypatch, caplog):
    monkeypatch.setattr(dispatch, "find_spec", lambda name: None)
    monkeypatch.setattr(dispatch, "_on_gpu", {})
    assert dispatch.kernels_in_triton() is None
    assert dispatch.kernels_in_triton() is None
    assert len(caplog.messages) == 1
    assert "triton is not installed" in caplog.text
