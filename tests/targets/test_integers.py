"""Codes and scales as other programs take them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spqlm.formats import parse
from spqlm.formats.group_sparse import of_share
from spqlm.formats.int4 import Int4
from spqlm.formats.int8 import Int8
from spqlm.formats.low_rank import of_factors
from spqlm.numerics.integer import dequantize_groups
from spqlm.numerics.metric import Metric
from spqlm.targets._integers import Integers, common, integers, packed, scheme, unpacked, widened


def fitted(form):
    weight = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    return form.fit(weight, Metric([(torch.eye(64), torch.ones(6))]), "nearest")


def random_integers(bits, groups, seed=0):
    generator = torch.Generator().manual_seed(seed)
    least = -(2 ** (bits - 1))
    codes = torch.randint(least, -least, (3, 64), generator=generator, dtype=torch.int8)
    return Integers(codes, torch.randn(3, groups, generator=generator), bits)


SPARSE = of_share(6, 64, 16, 4, 0.5)


LEVELS = [parse({f"nl{bits}": {"group_size": 32}}) for bits in (2, 3, 4, 5)]


@pytest.mark.parametrize(
    "form",
    [Int8(), Int4(group_size=16), SPARSE, *LEVELS, parse("iq4_nl"), parse("q8_0")],
    ids=lambda form: form.name,
)
def test_they_stand_for_the_weight(form):
    stored = fitted(form)
    found = integers(stored)
    assert scheme(form, 64) == (found.bits, found.group_size)
    assert torch.equal(dequantize_groups(found.codes, found.scale), stored.restore())


def test_what_is_more_than_a_scale_times_a_code_has_none():
    assert integers(of_factors(torch.ones(6, 2), torch.ones(2, 64))) is None
    assert integers(fitted(SPARSE.model_copy(update={"zero": True}))) is None
    assert integers(fitted(parse("q4_1"))) is None and scheme(parse("q4_1"), 64) is None
    assert scheme(parse("iq4_xs"), 256) is None


def test_levels_are_offered_to_no_budget_that_they_would_take_eight_bits_in():
    assert all("8 bits" in widened(form) for form in LEVELS)
    assert not any(map(widened, (Int8(), Int4(), parse("q8_0"), SPARSE)))


def test_one_scheme_for_several_leaves_the_numbers():
    weights = [random_integers(4, 1), random_integers(8, 4), random_integers(3, 2)]
    found = common(weights)
    assert {(weight.bits, weight.group_size) for weight in found} == {(8, 16)}
    for before, after in zip(weights, found, strict=True):
        expected = dequantize_groups(before.codes, before.scale)
        assert torch.equal(dequantize_groups(after.codes, after.scale), expected)


@given(bits=st.integers(2, 8), seed=st.integers(0, 99))
def test_words_hold_codes_from_the_lowest_bit_on(bits, seed):
    weight = random_integers(bits, 1, seed)
    words = packed(weight)
    assert words.shape == (3, 64 * bits // 32)
    for row, codes in zip(words.tolist(), weight.codes.tolist(), strict=True):
        number = sum((word & 0xFFFFFFFF) << (32 * place) for place, word in enumerate(row))
        expected = [(number >> (bits * place)) % 2**bits - 2 ** (bits - 1) for place in range(64)]
        assert codes == expected
    assert torch.equal(unpacked(words, bits, 64), weight.codes)
