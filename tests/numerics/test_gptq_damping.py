"""The metric that GPTQ rounds in: how it is damped, and the price of an error in it."""

import functools
import signal

import pytest
import torch
from tests.numerics.gptq_cases import (
    ROWS,
    correlated,
    cost,
    exact,
    random,
    round_int4,
    round_int8,
    to_nearest,
)

from spqlm.numerics import gptq, integer


@pytest.fixture(autouse=True)
def _no_endless_damping():
    """Damping that never suffices must fail, not hang the run."""

    def stop(*_):
        raise TimeoutError("the factorisation does not end")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(5)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


def test_damping_is_a_share_of_the_median_and_not_of_the_mean():
    hessian = torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0, 1e9]))
    before = hessian.clone()
    added = gptq.damped(hessian, 0.01) - hessian
    torch.testing.assert_close(added.diagonal()[:4], torch.full((4,), 0.03), rtol=1e-4, atol=0)
    assert torch.equal(hessian, before)


def test_channels_that_never_fire_do_not_lower_the_median():
    hessian = torch.diag(torch.tensor([0.0, 0.0, 0.0, 0.0, 5.0, 7.0, 9.0]))
    damped = gptq.damped(hessian, 0.1).diagonal()
    expected = torch.tensor([1.0, 1.0, 1.0, 1.0, 5.7, 7.7, 9.7])
    torch.testing.assert_close(damped, expected)


def test_a_metric_of_zeros_becomes_the_identity():
    assert torch.equal(gptq.damped(torch.zeros(3, 3), 0.01), torch.eye(3))
    weight = random(ROWS, 64)
    codes, scale = round_int4(weight, torch.zeros(64, 64), 32)
    assert torch.equal(scale, integer.search_group_scale(weight, None, 32))
    assert torch.equal(codes, integer.quantize_groups(weight, scale))


def test_dead_channels_are_rounded_to_nearest_and_do_not_disturb_the_rest():
    weight, alive = random(ROWS, 128), torch.arange(128) % 3 != 0
    hessian = correlated(128)
    hessian[~alive] = 0
    hessian[:, ~alive] = 0
    codes, scale = round_int4(weight, hessian, 32)
    nearest = integer.quantize_groups(weight, scale)
    assert torch.equal(codes[:, ~alive], nearest[:, ~alive])
    found = cost(exact(codes, scale) - weight, hessian)
    assert found < 0.8 * cost(exact(nearest, scale) - weight, hessian)
    # Whatever the dead channels hold, the others' corrections are the same.
    other = weight.clone()
    other[:, ~alive] *= 0.1
    per_row = torch.full((ROWS,), 0.03)
    first, second = (round_int8(w, hessian, per_row) for w in (weight, other))
    assert torch.equal(first[:, alive], second[:, alive])


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_a_singular_metric_of_rank_one_works(scale):
    weight, direction = random(ROWS, 128), random(128, seed=3).double()
    hessian = torch.outer(direction, direction) * scale
    codes, scales = round_int4(weight, hessian, 32)
    assert bool(torch.isfinite(scales).all())
    found = cost(exact(codes, scales) - weight, hessian)
    assert found < 0.05 * cost(to_nearest(weight, 32) - weight, hessian)


def test_a_metric_from_fewer_tokens_than_channels_works():
    weight, x = random(ROWS, 128), random(20, 128, seed=3).double()
    hessian = x.T @ x
    codes, scales = round_int4(weight, hessian, 64)
    found = cost(exact(codes, scales) - weight, hessian)
    assert found < 0.3 * cost(to_nearest(weight, 64) - weight, hessian)


@pytest.mark.parametrize("magnitude", [1e4, 1e6, 1e8])
def test_one_outlier_direction_does_not_swamp_the_others(magnitude):
    weight, hessian = random(ROWS, 160), correlated(160)
    # As measured in models: a few channels hold nearly all of it.
    direction = torch.zeros(160, dtype=torch.float64)
    direction[[3, 50, 121]] = torch.tensor([0.8, -0.5, 0.33], dtype=torch.float64)
    outlying = hessian + magnitude * torch.outer(direction, direction)
    codes, scale = round_int4(weight, outlying, 32)
    ordinary = cost(exact(codes, scale) - weight, hessian)
    assert ordinary < 0.9 * cost(to_nearest(weight, 32) - weight, hessian)


def test_damping_is_raised_only_as_far_as_needed():
    _, share = gptq.inverse_factor(correlated(64).float(), 0.01)
    assert share == 0.01
    direction = random(64).double()
    indefinite = correlated(64) - 0.5 * torch.outer(direction, direction) / 64
    _, share = gptq.inverse_factor(indefinite.float(), 0.001)
    assert share > 0.001


def test_the_factor_is_of_the_inverse():
    hessian = correlated(64)
    factor, share = gptq.inverse_factor(hessian.float(), 0.01)
    assert torch.equal(factor, factor.triu())
    product = factor.double().T @ factor.double() @ gptq.damped(hessian, share)
    torch.testing.assert_close(product, torch.eye(64).double(), rtol=0, atol=1e-3)


def test_damping_of_zero_is_enough_for_a_definite_metric():
    weight, hessian = random(ROWS, 64), correlated(64)
    codes, scale = round_int4(weight, hessian, 32, damping=0.0)
    assert cost(exact(codes, scale) - weight, hessian) < cost(
        to_nearest(weight, 32) - weight, hessian
    )


def test_damping_of_zero_is_raised_for_a_singular_metric():
    direction = random(64, seed=3)
    codes, scale = round_int4(random(ROWS, 64), torch.outer(direction, direction), 32, damping=0.0)
    assert bool(torch.isfinite(scale).all())
    assert codes.shape == (ROWS, 64)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_metric_that_is_not_finite_is_refused(bad):
    weight, hessian = random(ROWS, 64), correlated(64)
    hessian[3, 5] = bad
    for rounding in (
        functools.partial(round_int4, group_size=32),
        functools.partial(round_int8, scale=torch.ones(1)),
    ):
        with pytest.raises(ValueError, match="NaN or Inf"):
            rounding(weight, hessian)


def test_a_metric_that_no_damping_can_mend_is_refused():
    with pytest.raises(ValueError, match="semi-definite"):
        gptq.inverse_factor(-torch.eye(64), 0.01)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(bad):
    weight = random(ROWS, 64)
    weight[2, 40] = bad
    with pytest.raises(ValueError, match="finite"):
        round_int4(weight, correlated(64), 32)


def test_the_predicted_loss_is_its_definition():
    error, hessian, output = random(5, 12), correlated(12).float(), random(5, seed=2).square()
    expected = 0.0
    for row in range(5):
        for i in range(12):
            for j in range(12):
                expected += float(output[row] * error[row, i] * hessian[i, j] * error[row, j]) / 2
    assert gptq.predicted_loss(error, hessian, output) == pytest.approx(expected, rel=1e-4)
    doubled = gptq.predicted_loss(2 * error, hessian, output)
    assert doubled == pytest.approx(4 * expected, rel=1e-4)


def test_no_change_is_free_and_half_precision_is_accepted():
    hessian, output = correlated(12).float(), torch.ones(5)
    assert gptq.predicted_loss(torch.zeros(5, 12), hessian, output) == 0
    error = random(5, 12).bfloat16()
    exactly = gptq.predicted_loss(error.float(), hessian, output)
    assert gptq.predicted_loss(error, hessian, output) == exactly
