"""What the dispatcher does with CUDA tensors, which need no GPU to exist as fakes."""

import subprocess
import sys

import pytest
import torch
from torch._subclasses import FakeTensorMode

from spq.kernels import dispatch
from spq.kernels.int4_linear import int4_linear
from spq.kernels.int8_linear import int8_linear


class Kernels:
    """Stands for spq.kernels.triton."""

    def __init__(self, answer):
        self.answer = answer
        self.calls = []

    def product(self, *call):
        self.calls.append("product")
        return self.answer

    def low_rank(self, *call):
        self.calls.append("low_rank")
        return self.answer


@pytest.fixture
def cuda():
    """x [3, 64], int8 codes [5, 64], packed codes [5, 32] and scales [5] and [5, 2], as fakes."""
    with FakeTensorMode():
        yield (
            torch.empty(3, 64, device="cuda"),
            torch.empty(5, 64, dtype=torch.int8, device="cuda"),
            torch.empty(5, 32, dtype=torch.uint8, device="cuda"),
            torch.empty(5, device="cuda"),
            torch.empty(5, 2, device="cuda"),
        )


def use(monkeypatch, kernels):
    monkeypatch.setattr(dispatch, "_triton_kernels", lambda: kernels)


def test_cuda_tensors_go_to_the_kernels_for_them(cuda, monkeypatch):
    x, codes, packed, scale, scales = cuda
    kernels = Kernels(torch.empty(3, 5, device="cuda"))
    use(monkeypatch, kernels)
    assert int8_linear(x, codes, scale, None) is kernels.answer
    assert int4_linear(x, packed, scales, None) is kernels.answer
    factor = (codes, scale, None)
    assert dispatch.native_low_rank(x, factor, factor) is kernels.answer
    assert kernels.calls == ["product", "product", "low_rank"]


@pytest.mark.parametrize("kernels", [None, Kernels(None)], ids=["no triton", "refused"])
def test_what_they_do_not_take_is_computed_in_pytorch(cuda, monkeypatch, kernels):
    x, codes, packed, scale, scales = cuda
    use(monkeypatch, kernels)
    for y in (int8_linear(x, codes, scale, None), int4_linear(x, packed, scales, None)):
        assert y.shape == (3, 5)
        assert y.is_cuda


def test_gradients_and_tensors_elsewhere_are_none_of_theirs(cuda, monkeypatch):
    x, codes, _, scale, _ = cuda
    kernels = Kernels(None)
    use(monkeypatch, kernels)
    int8_linear(x.clone().requires_grad_(), codes, scale, None)
    int8_linear(x.cpu(), codes.cpu(), scale.cpu(), None)
    factor = (codes, scale.clone().requires_grad_(), None)
    assert dispatch.native_low_rank(x, factor, factor) is None
    assert not kernels.calls


def test_the_real_kernels_refuse_fakes(cuda):
    pytest.importorskip("triton", reason="triton is not installed")
    x, codes, packed, scale, scales = cuda
    dispatch._triton_kernels.cache_clear()
    assert int8_linear(x, codes, scale, None).shape == (3, 5)
    assert int4_linear(x, packed, scales, None).shape == (3, 5)


def test_without_triton_there_is_one_warning(monkeypatch, caplog):
    monkeypatch.setattr(dispatch, "find_spec", lambda name: None)
    dispatch._triton_kernels.cache_clear()
    assert dispatch._triton_kernels() is None
    assert dispatch._triton_kernels() is None
    dispatch._triton_kernels.cache_clear()
    assert [record.getMessage() for record in caplog.records].count(caplog.messages[0]) == 1
    assert "triton is not installed" in caplog.text


def test_importing_spq_does_not_import_the_kernels():
    code = "import sys, spq; sys.exit(any(m.startswith('spq.kernels.triton') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
