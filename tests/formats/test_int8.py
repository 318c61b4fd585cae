import pytest
import torch
from tests.stored_weights import definition, random

from spqlm.formats.int8 import Int8

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(params=["per_channel", "per_tensor"])
def form(request) -> Int8:
    return Int8(granularity=request.param)


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_are_within_half_a_step_of_the_dense_ones(form, dtype):
    weight = random(6, 10).to(dtype)
    stored = form.nearest(weight).cast(dtype)
    assert stored.format == form
    assert stored.codes.dtype == torch.int8
    assert stored.scale.dtype == dtype
    assert stored.scale.shape == ((6,) if form.granularity == "per_channel" else (1,))
    error = (definition(stored) - weight.double()).abs()
    assert bool((error <= stored.scale.double()[:, None] / 2 * (1 + 1e-4)).all())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e9])
def test_weights_that_no_scale_can_hold_are_refused(form, bad):
    weight = random(3, 4)
    weight[1, 2] = bad
    with pytest.raises(ValueError, match="finite and at most"):
        form.nearest(weight)


@pytest.mark.parametrize("bad", [0.0, -0.01, float("nan"), float("inf")])
def test_a_scale_that_is_not_positive_is_refused(form, bad):
    stored = form.nearest(random(3, 4))
    stored.check()
    stored.scale[-1] = bad
    with pytest.raises(ValueError, match="scale that is zero, negative or not finite"):
        stored.check()
