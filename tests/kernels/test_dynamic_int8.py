"""Integer products, against their definition in float64."""

import pytest
import torch

from spqlm import native
from spqlm.kernels import dynamic_int8
from spqlm.kernels.dynamic_int8 import BLOCK_ROWS, dynamic_int8_linear


def made(rows, columns, count, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, columns, generator=generator).to(dtype)
    codes = torch.randint(-127, 128, (rows, columns), generator=generator, dtype=torch.int8)
    return x, codes, (torch.rand(rows, generator=generator) + 0.1).to(dtype)


def rounded(x):
    """Inputs as they are multiplied."""
    step = x.double().abs().amax(-1, keepdim=True) / 127
    return (x.double() / step.where(step > 0, 1)).round() * step


TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("count", [17, BLOCK_ROWS, BLOCK_ROWS + 3])
@pytest.mark.parametrize("rows, columns", [(8, 16), (33, 64), (70, 96)])
def test_equals_the_product_of_the_rounded_inputs(rows, columns, count, dtype):
    x, codes, scale = made(rows, columns, count, dtype)
    bias = torch.randn(rows, dtype=dtype)
    found = dynamic_int8_linear(x, codes, scale / 100, bias)
    wanted = rounded(x) @ codes.double().T * (scale / 100).double() + bias.double()
    assert found is not None and found.dtype == dtype
    close = TOLERANCE[dtype] * float(wanted.abs().max())
    # An input half way between two codes may go either way.
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=close + 2e-2)


def test_one_scale_for_all_outputs_and_any_layout():
    x, codes, _ = made(24, 32, 60)
    x = x.view(3, 20, 32).transpose(0, 1)
    scale = torch.tensor([0.01])
    found = dynamic_int8_linear(x, codes, scale, None)
    assert found is not None and found.shape == (20, 3, 24)
    wanted = rounded(x) @ codes.double().T * 0.01
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=2e-2)


def test_rows_of_zeros_stay_zeros():
    x, codes, scale = made(8, 16, 40)
    x[3] = 0
    found = dynamic_int8_linear(x, codes, scale, None)
    assert found is not None and not found[3].any() and torch.isfinite(found).all()


def test_devices_where_torch_multiplies_no_integers_are_left_to_others():
    x, codes, scale = (tensor.to("meta") for tensor in made(8, 16, 40))
    assert dynamic_int8_linear(x, codes, scale, None) is None


def test_few_rows_and_gradients_are_left_to_others():
    x, codes, scale = made(8, 16, 40)
    assert dynamic_int8_linear(x[:16], codes, scale, None) is None
    assert dynamic_int8_linear(x.requires_grad_(), codes, scale, None) is None
    with torch.no_grad():
        assert dynamic_int8_linear(x, codes, scale, None) is not None


@pytest.mark.parametrize("fast", [True, False])
def test_floats_stand_in_where_integers_are_slow(fast, monkeypatch):
    x, codes, scale = made(24, 96, 40)
    monkeypatch.setattr(dynamic_int8, "INTEGERS_ARE_FAST", fast)
    monkeypatch.setattr(native, "library", lambda: None)
    calls = []
    inner = torch._int_mm
    monkeypatch.setattr(torch, "_int_mm", lambda *given: calls.append(1) or inner(*given))
    for held in (scale / 100, scale[:1] / 100):
        found = dynamic_int8_linear(x, codes, held, None)
        wanted = rounded(x) @ codes.double().T * held.double()
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=2e-2)
    assert bool(calls) == fast
