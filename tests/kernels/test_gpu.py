"""Which kernels serve a device; none of these devices need be there."""

import pytest
import torch
from tests.stored_weights import definition, int4, int8, random, random_codes
from torch._subclasses import FakeTensorMode

from spqlm.kernels import gpu, product
from spqlm.native import gpu as native_gpu


@pytest.fixture(autouse=True)
def asked_anew():
    gpu.kernels_on.cache_clear()
    yield
    gpu.kernels_on.cache_clear()


@pytest.fixture
def nvidia(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))


def test_an_nvidia_gpu_has_the_kernels_in_triton(nvidia, caplog):
    triton = pytest.importorskip("spqlm.kernels.triton", reason="triton is not installed")
    with FakeTensorMode(), torch.device("cuda"):
        x = torch.empty(3)
    assert gpu.kernels_for(x) is triton
    assert not caplog.messages


REASONS = {
    "rocm": "a build for ROCm",
    "no triton": "triton is not installed",
    "old": "its compute capability is 7.5, and kernels need 8.0",
    "mps": "a device of type 'mps'",
}


@pytest.fixture(params=REASONS)
def other(request, nvidia, monkeypatch):
    """A type of device that has no kernels, and why."""
    if request.param == "rocm":
        monkeypatch.setattr(torch.version, "hip", "6.4")
    if request.param == "no triton":
        monkeypatch.setattr(native_gpu, "find_spec", lambda name: None)
    if request.param == "old":
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    return "mps" if request.param == "mps" else "cuda", REASONS[request.param]


@pytest.mark.parametrize(
    "weight",
    [int8(random_codes(9, 64, 8), random(9).abs()), int4(random_codes(9, 64, 4), random(9, 2))],
    ids=["int8", "int4"],
)
def test_others_run_in_pytorch_and_one_line_says_why(other, weight, monkeypatch, caplog):
    device, reason = other
    # Tensors on the CPU that say they are elsewhere, where no native kernel serves them.
    monkeypatch.setattr(product, "kernels_for", lambda x: gpu.kernels_on(device))
    monkeypatch.setattr(product.native, "library", lambda: None)
    for count in (1, 40):
        x = random(count, 64, seed=count)
        wanted = (x.double() @ definition(weight).T).float()
        torch.testing.assert_close(product.linear(x, weight, None), wanted, rtol=1e-4, atol=1e-3)
    [message] = caplog.messages
    assert message.startswith("compressed layers run in PyTorch on this GPU, slower: ")
    assert reason in message


def test_a_cpu_is_not_spoken_of(caplog):
    assert gpu.kernels_for(torch.empty(3)) is None
    assert gpu.kernels_for(torch.empty(3, device="meta")) is None
    assert not caplog.messages
