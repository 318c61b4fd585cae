"""The gradient of scales against autograd."""

import pytest
import torch

from spqlm.numerics.scale_gradient import gradient_of_scales

# Products and the weight are rounded to the dtype; sums are not.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("size", [1.0, 1e-5], ids=["usual", "small"])
def test_it_is_that_of_autograd_through_the_definition(dtype, size):
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-8, 8, (6, 4, 32), generator=generator).double()
    scale = (torch.rand(6, 4, generator=generator) + 0.5) * 0.01
    scale = scale.to(dtype).double().requires_grad_()
    into = (torch.randn(6, 128, generator=generator) * size).to(dtype)
    weight = (codes * scale[..., None]).flatten(1)
    [expected] = torch.autograd.grad(weight, scale, into.double())
    found = gradient_of_scales(into, weight.detach().to(dtype), scale.detach().to(dtype))
    assert found.dtype == dtype
    error = float((found.double() - expected).norm() / expected.norm())
    assert error <= TOLERANCE[dtype]
