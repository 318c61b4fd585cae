import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spqlm.numerics import integer
from spqlm.numerics.smoothing import (
    LARGEST_EXPONENT,
    Reader,
    channels_of,
    exponents,
    fitted_exponents,
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
    reader = Reader(weight, tokens, output)
    assert int8_loss(reader, rows, exponents) == pytest.approx(wanted, rel=1e-3)


def readers_of(generator: torch.Generator, columns: int, tokens: int) -> list[Reader]:
    return [
        Reader(
            torch.randn(rows, columns, generator=generator),
            torch.rand(tokens, generator=generator),
            torch.rand(rows, generator=generator),
        )
        for rows in (24, 40)
    ]


def loss_of(readers: list[Reader], rows: torch.Tensor, found: torch.Tensor) -> float:
    return sum(int8_loss(reader, rows, found) for reader in readers)


def expected(readers: list[Reader], rows: torch.Tensor, found: torch.Tensor) -> float:
    """What `fitted_exponents` lowers, as its docstring has it."""
    factors, total = 2.0 ** found.double(), 0.0
    for weight, tokens, output in readers:
        shares = tokens.double() / tokens.double().sum()
        wide, entered = weight.double() * factors, rows.double() / factors
        of_tokens, of_rows = (v.abs().amax(1) / 127 for v in (entered, wide))
        total += float((shares @ of_tokens**2) * (output.double() @ wide**2).sum()) / 24
        total += float((output.double() @ of_rows**2) * (shares @ entered**2).sum()) / 24
    return total


@settings(max_examples=20)
@given(st.integers(0, 1000), st.sampled_from([1, 2]))
def test_fitted_exponents_lower_the_expected_loss(seed, width):
    generator = torch.Generator().manual_seed(seed)
    channels, tokens = 32, 64
    channel = channels_of(channels * width, channels, 1)
    readers = readers_of(generator, len(channel), tokens)
    rows = torch.randn(tokens, len(channel), generator=generator)
    rows *= torch.randn(channels, generator=generator).mul(2).exp()[channel]
    inputs = largest_of(rows.abs().amax(0), channel)
    weights = largest_of(torch.cat([r.weight for r in readers]).abs().amax(0), channel)
    start = exponents(inputs, weights, 0.5)
    found = fitted_exponents(readers, rows, channel, start)
    assert torch.equal(found, found.round())
    before = expected(readers, rows, start[channel])
    assert expected(readers, rows, found[channel]) <= before * (1 + 1e-5)


def test_what_is_expected_is_what_comes():
    generator = torch.Generator().manual_seed(4)
    readers, rows = readers_of(generator, 256, 128), torch.randn(128, 256, generator=generator)
    start = torch.zeros(256)
    assert expected(readers, rows, start) == pytest.approx(loss_of(readers, rows, start), rel=0.05)


def test_fitted_exponents_find_what_one_strength_cannot():
    """Two kinds of outliers: many tokens have one, and a single token has the other."""
    generator = torch.Generator().manual_seed(5)
    readers = readers_of(generator, 32, 128)
    rows = torch.randn(128, 32, generator=generator)
    rows[:, 3] *= 30
    rows[0, 4:20] *= 30
    channel = torch.arange(32)
    weights = torch.cat([r.weight for r in readers]).abs().amax(0)
    tried = [exponents(rows.abs().amax(0), weights, step / 20) for step in range(21)]
    best = min(tried, key=lambda found: loss_of(readers, rows, found))
    found = fitted_exponents(readers, rows, channel, best)
    assert loss_of(readers, rows, found) < 0.8 * loss_of(readers, rows, best)


def test_inputs_that_are_all_zero_leave_the_start_as_it_is():
    readers = readers_of(torch.Generator().manual_seed(1), 8, 16)
    start = torch.zeros(8)
    found = fitted_exponents(readers, torch.zeros(16, 8), torch.arange(8), start)
    assert torch.equal(found, start)
