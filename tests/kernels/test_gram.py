"""Weighted Gram matrices, against their definition in float64."""

import pytest
import torch

from spqlm import native
from spqlm.kernels.gram import add_gram
from spqlm.numerics.gram import complete_gram


def made(count, width, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, width, generator=generator).to(dtype)
    return x, torch.rand(count, generator=generator)


def expected(x, weights):
    rows = x.double() * weights.double().sqrt()[:, None]
    return rows.T @ rows


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("width", [1, 16, 47, 48, 49, 96, 200])
@pytest.mark.parametrize("count", [1, 2, 511, 512, 1025])
def test_equals_the_definition(count, width, dtype):
    x, weights = made(count, width, dtype)
    total = torch.zeros(width, width)
    add_gram(total, x, weights)
    found, wanted = complete_gram(total).double(), expected(x, weights)
    scale = wanted.diagonal().sqrt()
    # What rounding each factor to bfloat16 can make of it.
    error = (found - wanted).abs() / (scale[:, None] * scale)
    assert float(error.max()) < (2**-7 if dtype == torch.bfloat16 else 1e-5)


def test_adds_to_what_is_there():
    x, weights = made(300, 64, torch.bfloat16)
    at_once, in_parts = torch.zeros(64, 64), torch.zeros(64, 64)
    add_gram(at_once, x, weights)
    for part in (slice(0, 100), slice(100, 300)):
        add_gram(in_parts, x[part], weights[part])
    torch.testing.assert_close(complete_gram(in_parts), complete_gram(at_once))


def test_tokens_of_no_weight_do_not_count():
    x, weights = made(64, 32, torch.bfloat16)
    weights[::2] = 0
    all_of_them, some = torch.zeros(32, 32), torch.zeros(32, 32)
    add_gram(all_of_them, x, weights)
    add_gram(some, x[1::2].contiguous(), weights[1::2].contiguous())
    torch.testing.assert_close(complete_gram(all_of_them), complete_gram(some))


def test_inputs_in_another_order_of_memory():
    x, weights = made(32, 64, torch.bfloat16)
    total = torch.zeros(32, 32)
    add_gram(total, x.T, weights.new_ones(64))
    wanted = x.double() @ x.double().T
    torch.testing.assert_close(complete_gram(total).double(), wanted, rtol=1e-2, atol=0.5)


def test_the_kernel_and_the_reference_agree(monkeypatch):
    x, weights = made(700, 100, torch.bfloat16)
    fast, reference = torch.zeros(100, 100), torch.zeros(100, 100)
    add_gram(fast, x, weights)
    monkeypatch.setattr(native, "library", lambda: None)
    add_gram(reference, x, weights)
    norm = float(complete_gram(reference).diagonal().mean())
    torch.testing.assert_close(
        complete_gram(fast), complete_gram(reference), rtol=0, atol=2e-3 * norm
    )
