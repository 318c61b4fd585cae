import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spqlm.numerics import integer
from spqlm.numerics.smoothing import (
    LARGEST_EXPONENT,
    channels_of,
    exponents,
    int8_loss,
    largest_of,
)


@given(st.integers(0, 1000), st.floats(0, 1))
def test_exponents_are_those_of_equation_4_less_the_middle_one(seed, strength):
    generator = torch.Generator().manual_seed(seed)
    x, w = (torch.rand(9, generator=generator).exp() * 3 for _ in range(2))
    scale = x.double() ** strength / w.double() ** (1 - strength)
    wanted = scale.log2() - scale.log2().median()
    found = exponents(x, w, strength)
    assert bool(((found - wanted).abs() <= 0.5 + 1e-5).all())
    assert torch.equal(found, found.round())


def test_a_channel_that_is_never_used_has_no_factor():
    x, w = torch.tensor([0.0, 1.0, 64.0, 1.0]), torch.tensor([1.0, 1.0, 1.0, 0.0])
    assert exponents(x, w, 1.0).tolist() == [0.0, 0.0, 6.0, 0.0]
    assert exponents(torch.zeros(3), torch.ones(3), 0.5).tolist() == [0.0] * 3


def test_exponents_are_bounded():
    found = exponents(torch.tensor([1e-30, 1.0, 1e30]), torch.ones(3), 1.0)
    assert found.tolist() == [-LARGEST_EXPONENT, 0, LARGEST_EXPONENT]


def test_the_largest_of_the_inputs_of_a_channel_counts():
    channel, values = channels_of(16, 4, 2), torch.rand(16)
    expected = [float(values[channel == c].amax()) for c in range(4)]
    assert largest_of(values, channel).tolist() == pytest.approx(expected)


def test_channels_are_repeated_as_heads_are():
    from transformers.models.llama.modeling_llama import repeat_kv

    groups, repeats, width = 3, 2, 4
    values = torch.arange(groups * width).view(1, groups, 1, width)
    expected = repeat_kv(values, repeats).flatten()
    assert torch.equal(channels_of(groups * repeats * width, groups * width, width), expected)


@pytest.mark.parametrize("shift", [0, 3])
def test_int8_loss_is_the_weighed_error_of_rounding_both(shift):
    generator = torch.Generator().manual_seed(2)
    weight, rows = torch.randn(5, 8, generator=generator), torch.randn(9, 8, generator=generator)
    tokens, output = torch.rand(9, generator=generator), torch.rand(5, generator=generator)
    rows[:, 2] *= 40
    exponents = torch.tensor([0, 0, shift, 0, 0, 0, 0, 0])

    def rounded(values):
        step = values.abs().amax(1, keepdim=True) / 127
        return (values / step).round() * step

    factors = 2.0 ** exponents.double()
    wide, entered = weight.double() * factors, rows.double() / factors
    # Scales of weights have eight significant bits, and are rounded up.
    scale = integer.absmax_scale(wide.float(), per_channel=True).double()[:, None]
    error = rounded(entered) @ ((wide / scale).round() * scale).T - entered @ wide.T
    weighed = (tokens.double()[:, None] * error**2).sum(0) / tokens.double().sum()
    wanted = 0.5 * float((output.double() * weighed).sum())
    assert int8_loss(weight, rows, tokens, output, exponents) == pytest.approx(wanted, rel=1e-3)
