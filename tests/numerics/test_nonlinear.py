"""Levels that are denser near zero."""

import re
from pathlib import Path

import pytest
import torch

from spqlm import native
from spqlm.numerics import block_rounding, gptq
from spqlm.numerics.blocks import Grid
from spqlm.numerics.integer import code_range
from spqlm.numerics.nonlinear import LEVELS

BITS = pytest.mark.parametrize("bits", LEVELS)


@BITS
def test_levels_ascend_within_seven_bits(bits):
    levels = LEVELS[bits]
    assert len(levels) == 2**bits
    assert list(levels) == sorted(set(levels))
    assert (levels[0], levels[-1] < 64) == (-64, True)


@BITS
def test_levels_are_denser_near_zero(bits):
    steps = torch.tensor(LEVELS[bits]).diff()
    middle = len(steps) // 2
    assert steps[middle] < min(steps[0], steps[-1])


@pytest.mark.parametrize(("bits", "share"), [(4, 0.35), (5, 0.5)])
def test_those_of_more_bits_follow_their_formula(bits, share):
    count = 2**bits
    u = (2 * torch.arange(count, dtype=torch.float64) + 1 - count) / (count - 1)
    levels = 64 * ((1 - share) * u + share * u**3)
    levels = torch.where(u > 0, levels * (1 - 2.0 ** (1 - bits)), levels)
    assert levels.round().tolist() == list(LEVELS[bits])


def test_the_native_kernels_have_the_same_levels():
    source = Path(native.__file__).with_name("planes.h").read_text()
    table = source[source.index("LEVELS[]") :]
    rows = re.findall(r"\{([\d,\s]+)\}", table[: table.index("};")])
    found = [tuple(int(number) - 64 for number in row.split(",")) for row in rows]
    assert found == list(LEVELS.values())


@BITS
def test_normal_weights_lose_less_than_in_evenly_spaced_codes(bits):
    """By GPTQ and descent in one metric, at equal bytes."""
    generator = torch.Generator().manual_seed(bits)
    weight = torch.randn(96, 256, generator=generator)
    inputs = torch.randn(1024, 256, generator=generator)
    hessian = gptq.damped(inputs.T @ inputs / 1024, 0.01)
    factor, _ = gptq.inverse_factor(hessian, 0.0)
    low, high = code_range(bits)
    losses = []
    for levels in (LEVELS[bits], tuple(range(low, high + 1))):
        grid = Grid(levels=levels, block=64, group=64)
        found = block_rounding.round_blocks(weight, factor, grid)
        found = block_rounding.improve(weight, found, hessian, grid)
        error = found.restore(grid) - weight
        losses.append(float(((error @ hessian) * error).sum()))
    assert losses[0] < 0.9 * losses[1]
