"""int8 weights times rounded inputs, against their definition in float64."""

import pytest
import torch
from tests.kernels.test_dynamic_int8 import made, rounded

from spqlm.kernels import dynamic_int8, triton
from spqlm.kernels.triton.int8_linear import WIDEST, int8_product

ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 1e-3}


def wanted(x, codes, scale, bias=None):
    y = rounded(x) @ (codes.double() * scale.double().view(-1, 1)).T
    return y if bias is None else y + bias.double()


def assert_near(found, expected, dtype):
    assert found.dtype == dtype
    close = ROUNDING[dtype] * float(expected.abs().max())
    torch.testing.assert_close(found.cpu().double(), expected, rtol=0, atol=close)


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize(("rows", "columns", "count"), [(37, 200, 17), (9, 70, 130), (131, 64, 1)])
def test_equals_the_product_of_the_rounded_inputs(device, rows, columns, count, dtype):
    x, codes, scale = made(rows, columns, count, dtype)
    bias = torch.randn(rows, generator=torch.Generator().manual_seed(1)).to(dtype)
    found = int8_product(*(t.to(device) for t in (x, codes, scale, bias)))
    assert_near(found, wanted(x, codes, scale, bias), dtype)


def test_one_scale_for_all_outputs(device):
    x, codes, _ = made(24, 32, 60)
    scale = torch.tensor([0.01])
    found = int8_product(*(t.to(device) for t in (x, codes, scale)), None)
    assert_near(found, wanted(x, codes, scale), torch.float32)


def test_sums_are_exact_where_float32_would_round(device):
    # 127 * 127 * 4096 takes 26 bits.
    codes = torch.full((2, 4097), 127, dtype=torch.int8)
    codes[:, -1] = torch.tensor([1, -1])
    x = torch.ones(1, 4097)
    found = int8_product(*(t.to(device) for t in (x, codes, torch.ones(2))), None)
    assert_near(found, wanted(x, codes, torch.ones(2)), torch.float32)
    assert found[0, 0] != found[0, 1]


@pytest.mark.filterwarnings("ignore:invalid value")
def test_zeros_stay_zeros_and_a_row_with_nan_is_nan(device):
    x, codes, scale = made(8, 16, 3)
    x[0], x[1, 5] = 0, torch.nan
    found = int8_product(*(t.to(device) for t in (x, codes, scale)), None).cpu()
    assert not found[0].any()
    assert found[1].isnan().all()
    assert_near(found[2:], wanted(x[2:], codes, scale), torch.float32)


def test_what_the_kernels_do_not_take(device):
    x, codes, scale = (t.to(device) for t in made(8, 16, 3))
    assert int8_product(x.double(), codes, scale, None) is None
    assert int8_product(x[:0], codes, scale, None) is None
    assert int8_product(x, codes.T.contiguous().T, scale, None) is None
    wide = torch.zeros(1, WIDEST, device=device)
    assert int8_product(wide, wide.to(torch.int8), scale[:1], None) is None


def test_a_layer_of_any_shape_runs_there(device, monkeypatch):
    monkeypatch.setattr(dynamic_int8, "kernels_for", lambda x: triton)
    monkeypatch.setattr(dynamic_int8, "_possible", None)
    x, codes, scale = made(13, 35, 40)
    x = x.view(2, 20, 35)
    found = dynamic_int8.dynamic_int8_linear(*(t.to(device) for t in (x, codes, scale)), None)
    assert_near(found, wanted(x, codes, scale), torch.float32)
