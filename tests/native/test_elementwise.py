"""Norms and gates against their definitions in float64, for every instruction set there is."""

import pytest
import torch
from torch.nn import functional

from spqlm.native import elementwise

ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-10}


def random(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@pytest.fixture(params=ROUNDING, ids=str)
def dtype(request) -> torch.dtype:
    return request.param


@pytest.mark.parametrize("shape", [(1,), (3, 7), (2, 5, 64), (4, 129, 576)], ids=str)
def test_a_norm(instruction_set, dtype, shape):
    x, weight = 3 * random(*shape, dtype=dtype), random(shape[-1], dtype=dtype)
    exact = functional.rms_norm(x.double(), shape[-1:], weight.double(), 1e-5)
    y = elementwise.normalize(x, weight, 1e-5)
    assert y.dtype == dtype and y.shape == x.shape
    torch.testing.assert_close(y.double(), exact, rtol=ROUNDING[dtype], atol=1e-6)


@pytest.mark.parametrize("shape", [(1,), (3, 7), (2, 5000), (2, 3, 1536)], ids=str)
def test_a_gate(instruction_set, dtype, shape):
    gate, up = 5 * random(*shape, dtype=dtype), random(*shape, dtype=dtype)
    exact = functional.silu(gate.double()) * up.double()
    y = elementwise.gated(gate, up)
    assert y.dtype == dtype and y.shape == gate.shape
    # Below the smallest normal number of float16 its steps are 2^-24.
    torch.testing.assert_close(y.double(), exact, rtol=ROUNDING[dtype], atol=1e-6)


def test_threads_change_nothing(instruction_set):
    x, weight = random(33, 576, dtype=torch.bfloat16), random(576, dtype=torch.bfloat16)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append((elementwise.normalize(x, weight, 1e-5), elementwise.gated(x, x)))
    finally:
        torch.set_num_threads(threads)
    assert all(map(torch.equal, *found))


def test_what_does_not_fit_together_is_left_alone(library):
    x, weight = random(3, 64, dtype=torch.bfloat16), random(64, dtype=torch.bfloat16)
    assert elementwise.normalize(x.double(), weight, 1e-5) is None
    assert elementwise.normalize(x[:, ::2], weight[:32], 1e-5) is None
    assert elementwise.normalize(x, weight[:32], 1e-5) is None
    assert elementwise.normalize(x[:0], weight, 1e-5) is None
    assert elementwise.gated(x, x[:2]) is None
    assert elementwise.gated(x, x.float()) is None
