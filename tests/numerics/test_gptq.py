import functools
import signal

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from spqlm.numerics import gptq, integer

ROWS = 16

round_int4 = functools.partial(gptq.round_groups, bits=4)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(columns: int, seed: int = 1) -> Tensor:
    """A metric whose channels differ in size and lean on each other; float64."""
    mixing = random(columns, columns, seed=seed).double() / columns**0.5
    mixing = mixing @ torch.diag(torch.linspace(0.1, 2, columns, dtype=torch.float64)) @ mixing
    return mixing @ mixing.T + 0.01 * torch.eye(columns, dtype=torch.float64)


def exact(codes: Tensor, scale: Tensor) -> Tensor:
    return codes.double() * scale.double().repeat_interleave(codes.shape[1] // scale.shape[1], 1)


def cost(error: Tensor, hessian: Tensor) -> float:
    """tr(ΔW H ΔWᵀ) in float64."""
    error = error.double()
    return float(torch.trace(error @ hessian.double() @ error.T))


def to_nearest(weight: Tensor, group_size: int) -> Tensor:
    """Dequantised, float64."""
    scale = integer.search_group_scale(weight, None, group_size)
    return exact(integer.quantize_groups(weight, scale), scale)


def eliminate(weight: Tensor, hessian: Tensor, damping: float, start_column, round_column) -> None:
    """The algorithm as it is told, column by column, in float64, by eliminating from H⁻¹.

    Args:
        weight: [rows, columns]; changed.
        hessian: [columns, columns].
        damping: share of the median of the diagonal.
        start_column: called with the column before it is rounded.
        round_column: from a column's number to its rounded values [rows].
    """
    hessian = hessian.double()
    ridge = damping * float(hessian.diagonal().median())
    inverse = torch.linalg.inv(hessian + ridge * torch.eye(len(hessian), dtype=torch.float64))
    for column in range(len(hessian)):
        start_column(column)
        error = (weight[:, column] - round_column(column)) / inverse[column, column]
        weight[:, column:] -= torch.outer(error, inverse[column, column:])
        step = torch.outer(inverse[:, column], inverse[column]) / inverse[column, column]
        inverse = inverse - step


def pivots(hessian: Tensor, damping: float) -> Tensor:
    """1 / [H⁻¹]_qq at each column's turn."""
    hessian = hessian.double()
    ridge = damping * float(hessian.diagonal().median())
    inverse = torch.linalg.inv(hessian + ridge * torch.eye(len(hessian), dtype=torch.float64))
    found = []
    for column in range(len(hessian)):
        found.append(1 / inverse[column, column])
        step = torch.outer(inverse[:, column], inverse[column]) / inverse[column, column]
        inverse = inverse - step
    return torch.stack(found)


def plain_groups(
    weight: Tensor, hessian: Tensor, group_size: int, bits: int, damping: float
) -> tuple[Tensor, Tensor]:
    weight = weight.double().clone()
    importance = pivots(hessian, damping)
    codes = torch.zeros(weight.shape, dtype=torch.int8)
    scales: list[Tensor] = []
    least, most = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1

    def start(column: int) -> None:
        if column % group_size == 0:
            group = slice(column, column + group_size)
            scales.append(
                integer.search_group_scale(weight[:, group], importance[group], group_size, bits)
            )

    def rounded(column: int) -> Tensor:
        scale = scales[-1][:, 0].double()
        codes[:, column] = (weight[:, column] / scale).round().clamp(least, most).to(torch.int8)
        return codes[:, column] * scale

    eliminate(weight, hessian, damping, start, rounded)
    return codes, torch.cat(scales, 1)


def plain_int8(weight: Tensor, hessian: Tensor, scale: Tensor, damping: float) -> Tensor:
    weight, scale = weight.double().clone(), scale.double()
    codes = torch.zeros(weight.shape, dtype=torch.int8)

    def rounded(column: int) -> Tensor:
        codes[:, column] = (weight[:, column] / scale).round().clamp(-127, 127).to(torch.int8)
        return codes[:, column] * scale

    eliminate(weight, hessian, damping, lambda column: None, rounded)
    return codes


@pytest.fixture(autouse=True)
def _no_endless_damping():
    """Damping that never suffices must fail, not hang the run."""

    def stop(*_):
        raise TimeoutError("the factorisation does not end")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


# --- rounding ------------------------------------------------------------------------------------


@pytest.mark.parametrize("group_size", [32, 64])
@pytest.mark.parametrize("factor", [1e-6, 1.0, 1e6])
def test_without_correlations_it_is_rounding_to_nearest(group_size, factor):
    weight = random(ROWS, 192)
    codes, scale = round_int4(weight, torch.eye(192) * factor, group_size)
    assert torch.equal(codes, integer.quantize_groups(weight, scale))
    nearest = to_nearest(weight, group_size)
    assert cost(exact(codes, scale) - weight, torch.eye(192)) == pytest.approx(
        cost(nearest - weight, torch.eye(192)), rel=1e-4
    )
    per_row = integer.absmax_scale(weight, per_channel=True)
    codes = gptq.round_int8(weight, torch.eye(192) * factor, per_row)
    assert torch.equal(codes, integer.quantize(weight, per_row))


@pytest.mark.parametrize(("columns", "group_size"), [(96, 32), (320, 32), (320, 64), (384, 192)])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_blocks_change_nothing(columns, group_size, bits):
    weight, hessian = random(ROWS, columns), correlated(columns)
    codes, scale = gptq.round_groups(weight, hessian, group_size, bits)
    expected_codes, expected_scale = plain_groups(weight, hessian, group_size, bits, gptq.DAMPING)
    assert codes.dtype == torch.int8
    assert scale.dtype == torch.float32
    assert scale.shape == (ROWS, columns // group_size)
    # A value may lie so close to a tie that float32 falls on the other side, once.
    same = (codes == expected_codes).all(1) & (scale == expected_scale).all(1)
    assert int(same.sum()) >= ROWS - 1


@pytest.mark.parametrize("columns", [40, 128, 300])
@pytest.mark.parametrize("per_channel", [True, False])
def test_blocks_change_nothing_in_eight_bits(columns, per_channel):
    weight, hessian = random(ROWS, columns), correlated(columns)
    scale = integer.absmax_scale(weight, per_channel=per_channel)
    codes = gptq.round_int8(weight, hessian, scale)
    same = (codes == plain_int8(weight, hessian, scale, gptq.DAMPING)).all(1)
    assert codes.dtype == torch.int8
    assert int(same.sum()) >= ROWS - 2  # 16 times the ties of four bits


@pytest.mark.parametrize("group_size", [32, 128])
def test_the_weighted_error_is_less_than_to_nearest(group_size):
    ratios = []
    for seed in range(5):
        weight, hessian = random(ROWS, 256, seed=seed), correlated(256, seed + 100)
        codes, scale = round_int4(weight, hessian, group_size)
        nearest = cost(to_nearest(weight, group_size) - weight, hessian)
        ratios.append(cost(exact(codes, scale) - weight, hessian) / nearest)
    assert max(ratios) < 0.9
    assert sum(ratios) / len(ratios) < 0.8


def test_the_weighted_error_of_eight_bits_is_less_than_to_nearest():
    weight, hessian = random(ROWS, 256), correlated(256)
    scale = integer.absmax_scale(weight, per_channel=True)
    spread = scale[:, None].double()
    found = gptq.round_int8(weight, hessian, scale) * spread - weight
    nearest = integer.quantize(weight, scale) * spread - weight
    assert cost(found, hessian) < 0.8 * cost(nearest, hessian)


def test_codes_stay_in_range_where_corrections_push_weights_out():
    weight, hessian = random(ROWS, 64), correlated(64)
    scale = integer.absmax_scale(weight, per_channel=True) / 4  # far too small
    codes = gptq.round_int8(weight, hessian, scale)
    assert int(codes.abs().amax()) == 127
    codes, _ = round_int4(weight, torch.ones(64, 64) * 1e3, 32)
    assert int(codes.min()) >= -8
    assert int(codes.max()) <= 7


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scales_in_the_models_dtype_mean_what_they_mean_in_float32(dtype):
    weight, hessian = random(ROWS, 64), correlated(64)
    scale = integer.absmax_scale(weight, per_channel=True)
    codes = gptq.round_int8(weight, hessian, scale)
    assert torch.equal(gptq.round_int8(weight, hessian, scale.to(dtype)), codes)


def test_arguments_are_not_changed():
    weight, hessian = random(ROWS, 64), correlated(64).float()
    before = weight.clone(), hessian.clone()
    round_int4(weight, hessian, 32)
    gptq.round_int8(weight, hessian, torch.tensor([0.05]))
    assert torch.equal(weight, before[0])
    assert torch.equal(hessian, before[1])


def test_the_same_input_gives_the_same_codes():
    weight, hessian = random(ROWS, 64), correlated(64)
    first, second = (round_int4(weight, hessian, 32) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


# --- damping -------------------------------------------------------------------------------------


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
    first, second = (gptq.round_int8(w, hessian, per_row) for w in (weight, other))
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
        functools.partial(gptq.round_int8, scale=torch.ones(1)),
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


# --- price ---------------------------------------------------------------------------------------


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


class Waits(TorchDispatchMode):
    """Counts what a GPU would have to be waited for: values that Python asks for."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        asked = (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero)
        self.count += function.overloadpacket in asked
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("columns", [64, 256])
def test_a_sweep_waits_for_its_result_alone(columns):
    weight, hessian = random(8, columns), correlated(columns).float()
    factor, _ = gptq.inverse_factor(hessian)
    with Waits() as groups:
        gptq.round_groups(weight, hessian, 32, 4, factor=factor)
    assert groups.count == 1  # whether there are scales for all of it

    def round_group(group, values, importance):
        return lambda place, value: value.round()

    with Waits() as swept:
        gptq.sweep(weight, factor, 32, round_group)
    assert swept.count == 0
    with Waits() as counted:
        assert float(weight.sum()) != 0
    assert counted.count == 1  # it would be seen


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30])
def test_weights_without_a_scale_are_refused_behind_the_sweep(value):
    weight = random(4, 64)
    weight[1, 40] = value
    with pytest.raises(ValueError, match="scales must be finite and at most"):
        gptq.round_groups(weight, correlated(64), 32, 4)
