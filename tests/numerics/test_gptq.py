"""GPTQ's rounding, against the algorithm as it is told."""

import pytest
import torch
from tests.numerics.gptq_cases import (
    ROWS,
    correlated,
    cost,
    exact,
    plain_groups,
    plain_int8,
    random,
    round_groups,
    round_int4,
    round_int8,
    to_nearest,
)
from torch.utils._python_dispatch import TorchDispatchMode

from spqlm.numerics import gptq, integer
from spqlm.numerics.blocks import even_grid
from spqlm.numerics.in_order import Affine


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
    codes = round_int8(weight, torch.eye(192) * factor, per_row)
    assert torch.equal(codes, integer.quantize(weight, per_row))


@pytest.mark.parametrize(("columns", "group_size"), [(96, 32), (320, 32), (320, 64), (384, 192)])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_blocks_change_nothing(columns, group_size, bits):
    weight, hessian = random(ROWS, columns), correlated(columns)
    codes, scale = round_groups(weight, hessian, group_size, bits)
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
    codes = round_int8(weight, hessian, scale)
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
    found = round_int8(weight, hessian, scale) * spread - weight
    nearest = integer.quantize(weight, scale) * spread - weight
    assert cost(found, hessian) < 0.8 * cost(nearest, hessian)


def test_codes_stay_in_range_where_corrections_push_weights_out():
    weight, hessian = random(ROWS, 64), correlated(64)
    scale = integer.absmax_scale(weight, per_channel=True) / 4  # far too small
    codes = round_int8(weight, hessian, scale)
    assert int(codes.abs().amax()) == 127
    codes, _ = round_int4(weight, torch.ones(64, 64) * 1e3, 32)
    assert int(codes.min()) >= -8
    assert int(codes.max()) <= 7


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scales_in_the_models_dtype_mean_what_they_mean_in_float32(dtype):
    weight, hessian = random(ROWS, 64), correlated(64)
    scale = integer.absmax_scale(weight, per_channel=True)
    codes = round_int8(weight, hessian, scale)
    assert torch.equal(round_int8(weight, hessian, scale.to(dtype)), codes)


def test_arguments_are_not_changed():
    weight, hessian = random(ROWS, 64), correlated(64).float()
    before = weight.clone(), hessian.clone()
    round_int4(weight, hessian, 32)
    round_int8(weight, hessian, torch.tensor([0.05]))
    assert torch.equal(weight, before[0])
    assert torch.equal(hessian, before[1])


def test_the_same_input_gives_the_same_codes():
    weight, hessian = random(ROWS, 64), correlated(64)
    first, second = (round_int4(weight, hessian, 32) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


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
        gptq.round_groups(weight, factor, 32, 4)
    assert groups.count == 1  # whether there are scales for all of it

    def round_piece(columns, piece, importance):
        return even_grid(4, 32), Affine(torch.ones(8))

    with Waits() as swept:
        gptq.sweep(weight, factor, 32, round_piece)
    assert swept.count == 0
    with Waits() as counted:
        assert float(weight.sum()) != 0
    assert counted.count == 1  # it would be seen


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30])
def test_weights_without_a_scale_are_refused_behind_the_sweep(value):
    weight = random(4, 64)
    weight[1, 40] = value
    with pytest.raises(ValueError, match="scales must be finite and at most"):
        round_groups(weight, correlated(64), 32, 4)
