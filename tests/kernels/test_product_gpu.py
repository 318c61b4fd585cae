"""What a product does with CUDA tensors, which need no GPU to exist as fakes."""

from dataclasses import replace

import pytest
import torch
from torch._subclasses import FakeTensorMode

from spqlm.formats.group_sparse import GroupSparse
from spqlm.formats.int4 import Int4
from spqlm.formats.int8 import Int8
from spqlm.kernels import product
from spqlm.kernels.product import linear

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
    """Set what a product finds in the place of the kernels."""

    def set_kernels(kernels):
        monkeypatch.setattr(product, "kernels_for", lambda x: None if x.is_cpu else kernels)
        return kernels

    return set_kernels


@pytest.fixture
def cuda():
    """x [3, 64] and an int8 weight [5, 64]."""
    with FakeTensorMode(), torch.device("cuda"):
        yield torch.empty(3, 64), Int8().empty(5, 64, torch.float32)


def test_cuda_tensors_go_to_the_kernels_for_them(cuda, use):
    x, weight = cuda
    kernels = use(Kernels(ANSWER))
    with torch.device("cuda"):
        grouped = Int4(group_size=32).empty(5, 64, torch.float32)
        sparse = GroupSparse(kept=7).empty(5, 64, torch.float32)
    for stored in (weight, grouped, sparse):
        assert linear(x, stored, None) is ANSWER
    assert product.low_rank(x, weight, weight, None) is ANSWER
    assert kernels.calls == ["product", "product", "product", "low_rank"]


@pytest.mark.parametrize("kernels", [None, Kernels(None)], ids=["no triton", "refused"])
def test_what_they_do_not_take_is_computed_in_pytorch(cuda, use, kernels):
    use(kernels)
    assert linear(*cuda, None).shape == (3, 5)


def test_the_real_kernels_refuse_fakes(cuda, use):
    use(pytest.importorskip("spqlm.kernels.triton", reason="triton is not installed"))
    assert linear(*cuda, None).shape == (3, 5)


def test_gradients_and_tensors_elsewhere_are_none_of_theirs(cuda, use):
    x, weight = cuda
    kernels = use(Kernels(ANSWER))
    trained = replace(weight, scale=weight.scale.clone().requires_grad_())
    assert product.low_rank(x, trained, weight, None) is None
    here = replace(weight, codes=weight.codes.cpu(), scale=weight.scale.cpu())
    linear(x.cpu(), here, None)
    assert not kernels.calls
