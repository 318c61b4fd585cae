import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from spqlm.numerics import integer

bit_widths = st.integers(2, 8)
seeds = st.integers(0, 10_000)


def random(rows: int, columns: int, seed: int, magnitude: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator) * magnitude


def exact(codes: Tensor, scale: Tensor) -> Tensor:
    return codes.double() * scale.double()[:, None]


@pytest.mark.parametrize(("bits", "largest"), [(2, 1), (3, 3), (4, 7), (8, 127)])
def test_largest_code_is_symmetric(bits, largest):
    assert integer.largest_code(bits) == largest


@given(st.floats(2**-16, integer.LARGEST_SCALE, width=32))
def test_a_scale_is_rounded_up_by_less_than_one_part_in_128(raw):
    rounded = float(integer.round_scale_up(torch.tensor([raw])))
    assert raw <= rounded <= raw * (1 + 1 / 128)


@given(st.floats(0, integer.LARGEST_SCALE, width=32))
def test_a_scale_means_the_same_in_every_float_type(raw):
    scale = integer.round_scale_up(torch.tensor([raw]))
    assert scale.dtype == torch.float32
    assert float(scale) >= max(raw, integer.SMALLEST_SCALE)
    for dtype in (torch.float16, torch.bfloat16):
        assert torch.equal(scale.to(dtype).float(), scale)


@given(st.floats(0, integer.LARGEST_SCALE, width=32))
def test_rounding_a_rounded_scale_changes_nothing(raw):
    once = integer.round_scale_up(torch.tensor([raw]))
    assert torch.equal(integer.round_scale_up(once), once)


def test_a_tiny_scale_rises_to_the_grid_of_half_precision():
    for raw in (2.0**-126, 2.0**-149, 1e-30, 2.0**-25, 2.0**-24):
        assert float(integer.round_scale_up(torch.tensor([raw]))) == 2.0**-24
    assert float(integer.round_scale_up(torch.tensor([2.5 * 2.0**-24]))) == 3 * 2.0**-24


@pytest.mark.parametrize("bad", [65281.0, 1e30, float("inf"), float("nan")])
def test_a_scale_beyond_half_precision_or_not_finite_is_refused(bad):
    with pytest.raises(ValueError, match="finite and at most"):
        integer.round_scale_up(torch.tensor([1.0, bad]))
    with pytest.raises(ValueError, match="finite and at most"):
        integer.absmax_scale(torch.tensor([[1.0, bad * 127]]), per_channel=True)


@given(st.integers(1, 9), st.integers(1, 17), seeds, bit_widths, st.booleans())
def test_round_trip_error_is_at_most_half_a_step(rows, columns, seed, bits, per_channel):
    weight = random(rows, columns, seed, magnitude=10.0 ** (seed % 5 - 3))
    scale = integer.absmax_scale(weight, per_channel=per_channel, bits=bits)
    codes = integer.quantize(weight, scale, bits)
    assert codes.dtype == torch.int8
    assert int(codes.abs().max()) <= integer.largest_code(bits)
    error = (exact(codes, scale) - weight.double()).abs()
    assert bool((error <= scale.double()[:, None] / 2 * (1 + 1e-4)).all())


@given(st.integers(1, 9), st.integers(1, 17), seeds, bit_widths)
def test_codes_are_the_nearest_in_float64(rows, columns, seed, bits):
    weight = random(rows, columns, seed)
    scale = integer.absmax_scale(weight, per_channel=True, bits=bits)
    steps = weight.double() / scale.double()[:, None]
    off = (integer.quantize(weight, scale, bits).double() - steps).abs()
    assert float(off.max()) <= 0.5 + 1e-4


def test_weights_beyond_the_range_are_clipped_to_the_largest_code():
    weight = torch.tensor([[1000.0, -1000.0, 0.0, 1.0]])
    assert integer.quantize(weight, torch.tensor([1.0])).tolist() == [[127, -127, 0, 1]]
    assert integer.quantize(weight, torch.tensor([1.0]), 4).tolist() == [[7, -7, 0, 1]]
    generator = torch.Generator().manual_seed(0)
    codes = integer.quantize_stochastic(weight, torch.tensor([1.0]), generator)
    assert codes.tolist() == [[127, -127, 0, 1]]


def test_per_channel_has_a_scale_for_each_row_and_per_tensor_the_largest_of_them():
    weight = torch.tensor([[1.0, -2.0], [0.5, 0.25], [-254.0, 3.0]])
    rows = integer.absmax_scale(weight, per_channel=True)
    whole = integer.absmax_scale(weight, per_channel=False)
    assert rows.shape == (3,)
    assert whole.shape == (1,)
    assert float(rows[2]) == float(whole) == 2.0
    assert torch.equal(rows, integer.round_scale_up(torch.tensor([2.0, 0.5, 254.0]) / 127))


def test_zero_rows_get_a_positive_scale_and_zero_codes():
    weight = torch.zeros(2, 3)
    weight[1, 0] = 1.0
    for per_channel in (True, False):
        scale = integer.absmax_scale(weight, per_channel=per_channel)
        assert bool((scale > 0).all())
        assert integer.quantize(weight, scale)[0].tolist() == [0, 0, 0]
    scale = integer.absmax_scale(torch.zeros(2, 3), per_channel=False)
    assert float(scale) == integer.SMALLEST_SCALE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_float_types_are_quantised_as_their_float32_values(dtype):
    weight = random(5, 7, 0).to(dtype)
    scale = integer.absmax_scale(weight, per_channel=True)
    assert torch.equal(scale, integer.absmax_scale(weight.float(), per_channel=True))
    assert torch.equal(integer.quantize(weight, scale), integer.quantize(weight.float(), scale))


def test_dequantised_weights_have_the_dtype_of_the_scale():
    codes = torch.tensor([[1, -127], [3, 0]], dtype=torch.int8)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for scale in ([0.5, 2.0], [0.25]):
            weight = integer.dequantize(codes, torch.tensor(scale, dtype=dtype))
            assert weight.dtype == dtype
            assert torch.equal(weight.double(), exact(codes, torch.tensor(scale)))


@given(seeds, bit_widths, st.booleans())
def test_quantising_a_dequantised_weight_gives_the_same_codes(seed, bits, per_channel):
    weight = random(6, 9, seed)
    scale = integer.absmax_scale(weight, per_channel=per_channel, bits=bits)
    codes = integer.quantize(weight, scale, bits)
    assert torch.equal(integer.quantize(integer.dequantize(codes, scale), scale, bits), codes)


@given(st.integers(1, 9), st.integers(1, 17), seeds, bit_widths, st.booleans())
def test_stochastic_codes_lie_within_one_step(rows, columns, seed, bits, per_channel):
    weight = random(rows, columns, seed)
    scale = integer.absmax_scale(weight, per_channel=per_channel, bits=bits)
    generator = torch.Generator().manual_seed(seed)
    codes = integer.quantize_stochastic(weight, scale, generator, bits)
    assert codes.dtype == torch.int8
    assert int(codes.abs().max()) <= integer.largest_code(bits)
    error = (exact(codes, scale) - weight.double()).abs()
    assert bool((error <= scale.double()[:, None] * (1 + 1e-4)).all())


def test_stochastic_rounding_is_right_on_average():
    weight = torch.tensor([[0.1, 0.5, -0.3, 2.75, -126.9, 60.01]]).T.repeat(1, 40_000)
    generator = torch.Generator().manual_seed(0)
    codes = integer.quantize_stochastic(weight, torch.tensor([1.0]), generator)
    # Five standard errors of a coin that lands up or down.
    assert float((codes.double().mean(1) - weight[:, 0]).abs().max()) < 5 * 0.5 / 40_000**0.5


def test_stochastic_rounding_depends_on_the_generator_alone():
    weight, scale = random(8, 8, 0), torch.tensor([0.3])

    def codes(seed: int) -> Tensor:
        return integer.quantize_stochastic(weight, scale, torch.Generator().manual_seed(seed))

    torch.manual_seed(1)
    first = codes(7)
    torch.manual_seed(2)
    assert torch.equal(codes(7), first)
    assert not torch.equal(codes(8), first)


def test_values_on_the_grid_stay_where_they_are(monkeypatch):
    codes = torch.arange(-127, 128, dtype=torch.int8)[None]
    scale = integer.round_scale_up(torch.tensor([0.0137]))
    weight = integer.dequantize(codes, scale)
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        assert torch.equal(integer.quantize_stochastic(weight, scale, generator), codes)
    # The largest draw there is: it comes up once in 2^24, and a model has more weights than that.
    largest = 1 - 2.0**-24
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.full(shape, largest))
    assert torch.equal(integer.quantize_stochastic(weight, scale, torch.Generator()), codes)


def test_the_weight_is_not_changed():
    weight, scale = random(3, 4, 0), torch.tensor([1.0])
    before = weight.clone()
    integer.quantize(weight, scale)
    integer.quantize_stochastic(weight, scale, torch.Generator().manual_seed(0))
    assert torch.equal(weight, before)


@pytest.mark.parametrize("per_channel", [True, False])
def test_codes_that_are_made_some_rows_at_a_time_are_the_same(monkeypatch, per_channel):
    weight = random(7, 10, 3).bfloat16()
    scale = integer.absmax_scale(weight, per_channel=per_channel)
    codes = integer.quantize(weight, scale)
    monkeypatch.setattr(integer, "AT_ONCE", 25)  # two rows
    assert torch.equal(integer.quantize(weight, scale), codes)
    assert torch.equal(integer.absmax_scale(weight.abs(), per_channel=per_channel), scale)
