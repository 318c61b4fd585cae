import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from spqlm.numerics import integer

seeds = st.integers(0, 10_000)
group_sizes = st.sampled_from([2, 8, 32, 64])
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def random(rows: int, columns: int, seed: int = 0, magnitude: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator) * magnitude


def random_codes(rows: int, columns: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-8, 8, (rows, columns), generator=generator, dtype=torch.int8)


def exact(codes: Tensor, scale: Tensor) -> Tensor:
    """Of unpacked codes."""
    return codes.double() * scale.double().repeat_interleave(codes.shape[1] // scale.shape[1], 1)


def weighted_error(weight: Tensor, scale: Tensor, importance: Tensor | None = None) -> Tensor:
    """Squared error of the nearest codes, by row and group."""
    off = exact(integer.quantize_groups(weight, scale), scale) - weight.double()
    cost = off.square() * (1.0 if importance is None else importance.double())
    return cost.unflatten(1, (scale.shape[1], -1)).sum(2)


def absmax(weight: Tensor, group_size: int) -> Tensor:
    """The largest magnitude of a group at code -8, whatever its sign."""
    groups = weight.unflatten(1, (-1, group_size))
    low, high = groups.amin(2), groups.amax(2)
    magnitude = integer.round_scale_up(groups.abs().amax(2) / 8)
    return torch.where(high > -low, -magnitude, magnitude)


@given(st.integers(0, 9), st.integers(1, 40), seeds)
def test_codes_survive_packing(rows, pairs, seed):
    codes = random_codes(rows, 2 * pairs, seed)
    packed = integer.pack_int4(codes)
    assert packed.dtype == torch.uint8
    assert packed.shape == (rows, pairs)
    unpacked = integer.unpack_int4(packed)
    assert unpacked.dtype == torch.int8
    assert torch.equal(unpacked, codes)


def test_every_byte_is_a_pair_of_codes():
    packed = torch.arange(256).to(torch.uint8)[None]
    codes = integer.unpack_int4(packed)
    assert int(codes.min()) == -8
    assert int(codes.max()) == 7
    assert torch.equal(integer.pack_int4(codes), packed)


def test_the_even_column_lies_in_the_low_nibble():
    codes = torch.tensor([[-8, 7, 0, -1]], dtype=torch.int8)
    assert integer.pack_int4(codes).tolist() == [[0xF0, 0x78]]


@given(st.integers(1, 4), st.integers(0, 20))
def test_an_odd_width_is_refused(rows, pairs):
    with pytest.raises(ValueError, match=f"there are {2 * pairs + 1} columns"):
        integer.pack_int4(random_codes(rows, 2 * pairs + 1))


@pytest.mark.parametrize(
    ("bits", "codes"), [(2, (-2, 1)), (3, (-4, 3)), (4, (-8, 7)), (7, (-64, 63)), (8, (-127, 127))]
)
def test_the_range_of_codes_is_all_of_twos_complement_below_eight_bits(bits, codes):
    assert integer.code_range(bits) == codes


@given(st.integers(1, 6), st.integers(1, 3), group_sizes, seeds, st.integers(2, 8))
def test_codes_are_the_nearest_of_all(rows, groups, group_size, seed, bits):
    weight = random(rows, groups * group_size, seed)
    scale = integer.round_scale_up(random(rows, groups, seed + 1).abs() * 0.3)
    scale *= random(rows, groups, seed + 2).sign()
    codes = integer.quantize_groups(weight, scale, bits)
    least, most = integer.code_range(bits)
    assert codes.dtype == torch.int8
    assert int(codes.min()) >= least
    assert int(codes.max()) <= most
    spread = scale.double().repeat_interleave(group_size, 1)
    levels = torch.arange(least, most + 1, dtype=torch.float64)
    best = (levels * spread[..., None] - weight.double()[..., None]).abs().amin(2)
    off = (exact(codes, scale) - weight.double()).abs()
    assert bool((off <= best + 1e-4 * spread.abs()).all())


def test_each_sign_of_the_scale_has_its_own_longer_end():
    weight = torch.tensor([[100.0, -100.0, 1.0, -1.0]])
    assert integer.quantize_groups(weight, torch.tensor([[1.0]])).tolist() == [[7, -8, 1, -1]]
    assert integer.quantize_groups(weight, torch.tensor([[-1.0]])).tolist() == [[-8, 7, -1, 1]]
    two = integer.quantize_groups(weight, torch.tensor([[-1.0, 0.5]]))
    assert two.tolist() == [[-8, 7, 2, -2]]


@given(st.integers(1, 6), st.integers(1, 3), group_sizes, seeds, st.booleans())
def test_the_searched_scale_is_never_worse_than_absmax(rows, groups, group_size, seed, weighted):
    weight = random(rows, groups * group_size, seed, magnitude=10.0 ** (seed % 5 - 3))
    importance = random(1, groups * group_size, seed + 1)[0].exp() if weighted else None
    scale = integer.search_group_scale(weight, importance, group_size)
    assert scale.shape == (rows, groups)
    found = weighted_error(weight, scale, importance)
    plain = weighted_error(weight, absmax(weight, group_size), importance)
    assert bool((found <= plain * (1 + 1e-4)).all())


def test_the_searched_scale_is_the_best_of_the_grid():
    weight, importance = random(16, 64), random(1, 64, 1)[0].exp()
    found = weighted_error(weight, integer.search_group_scale(weight, importance, 32), importance)
    sign = absmax(weight, 32).sign()
    largest = weight.unflatten(1, (-1, 32)).abs().amax(2)
    for shrink in integer.SHRINKS:
        tried = sign * integer.round_scale_up(largest * (shrink / 8))
        assert bool((found <= weighted_error(weight, tried, importance) * (1 + 1e-4)).all())


def test_search_gains_on_ordinary_weights():
    weight = random(64, 128)
    found = weighted_error(weight, integer.search_group_scale(weight, None, 64)).sum()
    assert float(found) < 0.9 * float(weighted_error(weight, absmax(weight, 64)).sum())


@given(seeds, group_sizes)
def test_the_largest_magnitude_gets_a_negative_code(seed, group_size):
    weight = random(5, 2 * group_size, seed)
    scale = integer.search_group_scale(weight, None, group_size)
    groups = weight.unflatten(1, (2, -1))
    largest = groups.gather(2, groups.abs().argmax(2, keepdim=True))[..., 0]
    assert torch.equal(scale.sign(), -largest.sign())
    codes = integer.quantize_groups(weight, scale).unflatten(1, (2, -1))
    at_largest = codes.gather(2, groups.abs().argmax(2, keepdim=True))
    # Codes go down to -8 on that side; -7 only where the scale was rounded up.
    assert bool((at_largest <= -7).all())


@given(seeds, st.integers(-7, 4))
def test_a_searched_scale_means_the_same_in_every_float_type(seed, exponent):
    weight = random(4, 64, seed, magnitude=10.0**exponent)
    scale = integer.search_group_scale(weight, None, 32)
    assert scale.dtype == torch.float32
    assert bool((scale.abs() >= integer.SMALLEST_SCALE).all())
    for dtype in DTYPES:
        assert torch.equal(scale.to(dtype).float(), scale)


def test_a_group_of_zeros_gets_a_usable_scale_and_zero_codes():
    weight = random(3, 64)
    weight[1, :32] = 0
    weight[2] = 0
    scale = integer.search_group_scale(weight, None, 32)
    assert bool((scale != 0).all())
    assert bool(torch.isfinite(scale).all())
    codes = integer.quantize_groups(weight, scale)
    assert not codes[1, :32].any()
    assert not codes[2].any()
    assert torch.equal(scale[0], integer.search_group_scale(weight[:1], None, 32)[0])


def test_importance_decides_what_is_clipped():
    # One large weight, the others small: clip it only where it does not matter.
    weight = torch.full((1, 32), 0.11)
    weight[0, 1::2] = -0.13
    weight[0, 0] = 1.0
    protects, gives_up = torch.ones(32), torch.ones(32)
    protects[0], gives_up[0] = 1e4, 1e-4
    kept = integer.search_group_scale(weight, protects, 32)
    clipped = integer.search_group_scale(weight, gives_up, 32)
    assert float(clipped.abs()) < float(kept.abs())
    assert float(weighted_error(weight, kept, protects)) <= float(
        weighted_error(weight, clipped, protects)
    )
    assert float(weighted_error(weight, clipped, gives_up)) < float(
        weighted_error(weight, kept, gives_up)
    )


def test_columns_that_do_not_matter_do_not_count():
    weight, importance = random(8, 32), torch.ones(32)
    importance[16:] = 0
    scale = integer.search_group_scale(weight, importance, 32)
    plain = absmax(weight, 32)
    found, at_absmax = (weighted_error(weight, s, importance).sum() for s in (scale, plain))
    assert float(found) < float(at_absmax)


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_only_ratios_of_importance_count(factor):
    weight, importance = random(8, 64), random(1, 64, 1)[0].exp()
    scale = integer.search_group_scale(weight, importance, 32)
    again = integer.search_group_scale(weight, importance * factor, 32)
    errors = [weighted_error(weight, s, importance) for s in (scale, again)]
    torch.testing.assert_close(errors[0], errors[1], rtol=1e-5, atol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1e9])
def test_weights_that_no_scale_can_hold_are_refused(bad):
    weight = random(2, 64)
    weight[1, 40] = bad
    with pytest.raises(ValueError, match="finite and at most"):
        integer.search_group_scale(weight, None, 32)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_importance_that_is_not_finite_is_refused(bad):
    importance = torch.ones(64)
    importance[3] = bad
    with pytest.raises(ValueError, match="importance"):
        integer.search_group_scale(random(2, 64), importance, 32)


def test_where_no_column_matters_the_scale_is_absmax():
    weight = random(4, 64)
    scale = integer.search_group_scale(weight, torch.zeros(64), 32)
    assert torch.equal(scale, absmax(weight, 32))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_float_types_are_quantised_as_their_float32_values(dtype):
    weight = random(4, 64).to(dtype)
    scale = integer.search_group_scale(weight, None, 32)
    assert torch.equal(scale, integer.search_group_scale(weight.float(), None, 32))
    codes = integer.quantize_groups(weight, scale)
    assert torch.equal(codes, integer.quantize_groups(weight.float(), scale.to(dtype)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_packed_codes_are_dequantised_group_by_group(dtype, groups):
    codes = random_codes(5, 64)
    scale = integer.round_scale_up(random(5, groups).abs()) * random(5, groups, 1).sign()
    unpacked = integer.unpack_int4(integer.pack_int4(codes))
    weight = integer.dequantize_groups(unpacked, scale.to(dtype))
    assert weight.dtype == dtype
    assert torch.equal(weight, exact(codes, scale).to(dtype))


@given(seeds, group_sizes)
def test_quantising_a_dequantised_weight_gives_the_same_codes(seed, group_size):
    weight = random(3, 2 * group_size, seed)
    scale = integer.search_group_scale(weight, None, group_size)
    codes = integer.quantize_groups(weight, scale)
    dequantized = integer.dequantize_groups(codes, scale)
    assert torch.equal(integer.quantize_groups(dequantized, scale), codes)


@given(st.integers(1, 6), st.integers(1, 3), group_sizes, seeds, st.integers(2, 8))
def test_random_codes_lie_within_one_step(rows, groups, group_size, seed, bits):
    weight = random(rows, groups * group_size, seed)
    scale = integer.search_group_scale(weight, None, group_size, bits)
    generator = torch.Generator().manual_seed(seed)
    codes = integer.quantize_groups_stochastic(weight, scale, generator, bits)
    least, most = integer.code_range(bits)
    assert codes.dtype == torch.int8
    assert least <= int(codes.min()) and int(codes.max()) <= most
    steps = weight.double() / scale.double().repeat_interleave(group_size, 1)
    off = (codes.double() - steps.clamp(least, most)).abs()
    assert float(off.max()) < 1 + 1e-4


def test_random_codes_are_right_on_average():
    steps = torch.tensor([0.1, 0.5, -0.3, 2.75, -7.9, 6.01])
    scale = torch.tensor([[0.25, -0.5]]).repeat(40_000, 1)
    weight = (steps * scale.repeat_interleave(3, 1)).contiguous()
    generator = torch.Generator().manual_seed(0)
    codes = integer.quantize_groups_stochastic(weight, scale, generator)
    # Five standard errors of a coin that lands up or down.
    assert float((codes.double().mean(0) - steps).abs().max()) < 5 * 0.5 / 40_000**0.5


def test_arguments_are_not_changed():
    weight, importance = random(3, 64), random(1, 64, 1)[0].exp()
    before = weight.clone(), importance.clone()
    scale = integer.search_group_scale(weight, importance, 32)
    codes = integer.quantize_groups(weight, scale)
    kept = codes.clone()
    integer.pack_int4(codes)
    assert torch.equal(weight, before[0])
    assert torch.equal(importance, before[1])
    assert torch.equal(codes, kept)
