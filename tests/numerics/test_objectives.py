"""Losses and gradients, against autograd in float64."""

import pytest
import torch
from torch.nn import functional

from spqlm.numerics import objectives
from spqlm.numerics.objectives import divergence, next_token


@pytest.fixture(params=["whole", "in pieces", "row by row"], autouse=True)
def pieces(request, monkeypatch):
    """Logits of these tests are 50 wide, and 7 or 2 high."""
    size = {"whole": 1 << 20, "in pieces": 150, "row by row": 1}[request.param]
    monkeypatch.setattr(objectives, "CHUNK", size)


def made(dtype, tokens=7, vocabulary=50, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = (4 * torch.randn(tokens, vocabulary, generator=generator)).to(dtype)
    return logits, torch.randint(0, vocabulary, (tokens,), generator=generator)


def tolerance(dtype):
    return 1e-5 if dtype == torch.float32 else 4e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_next_token_is_cross_entropy(dtype):
    logits, ids = made(dtype)
    exact = logits.double().requires_grad_()
    wanted = functional.cross_entropy(exact[:-1], ids[1:], reduction="sum")
    wanted.backward()
    loss, gradient = next_token(logits, ids)
    assert (loss.dtype, gradient.dtype) == (torch.float32, dtype)
    torch.testing.assert_close(loss.double(), wanted.detach(), rtol=1e-5, atol=1e-5)
    close = {"rtol": tolerance(dtype), "atol": tolerance(dtype) / 100}
    torch.testing.assert_close(gradient.double(), exact.grad, **close)
    assert not gradient[-1].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_divergence_is_kullback_leibler(dtype):
    logits, _ = made(dtype)
    wanted_logits, _ = made(dtype, seed=1)
    exact = logits.double().requires_grad_()
    log_p = wanted_logits.double().log_softmax(-1)
    wanted = functional.kl_div(exact.log_softmax(-1), log_p, reduction="sum", log_target=True)
    wanted.backward()
    loss, gradient = divergence(logits, wanted_logits)
    assert (loss.dtype, gradient.dtype) == (torch.float32, dtype)
    torch.testing.assert_close(loss.double(), wanted.detach(), rtol=1e-5, atol=1e-5)
    close = {"rtol": tolerance(dtype), "atol": tolerance(dtype) / 100}
    torch.testing.assert_close(gradient.double(), exact.grad, **close)


def test_nothing_diverges_from_itself():
    logits, _ = made(torch.float32)
    loss, gradient = divergence(logits, logits)
    assert abs(float(loss)) < 1e-5
    assert float(gradient.abs().max()) < 1e-6


def test_neither_changes_its_inputs_nor_needs_a_graph():
    logits, ids = made(torch.float32)
    logits.requires_grad_()
    before = logits.detach().clone()
    for loss, gradient in (next_token(logits, ids), divergence(logits, before)):
        assert not loss.requires_grad and not gradient.requires_grad
    assert torch.equal(logits, before)
    logits.backward(gradient)


def test_what_is_certain_does_not_overflow():
    logits = torch.full((2, 3), -1e4)
    logits[:, 1] = 1e4
    loss, gradient = next_token(logits, torch.tensor([0, 1]))
    assert float(loss) == 0
    assert torch.isfinite(gradient).all()
    for loss, gradient in (divergence(logits, -logits), divergence(-logits, logits)):
        assert torch.isfinite(loss) and torch.isfinite(gradient).all()
