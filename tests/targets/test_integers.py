"""Codes and scales as other programs take them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spqlm.formats.group_sparse import of_share
from spqlm.formats.int4 import Int4
from spqlm.formats.int8 import Int8
from spqlm.formats.low_rank import of_factors
from spqlm.numerics.integer import dequantize_groups
from spqlm.numerics.metric import Metric
from spqlm.targets._integers import Integers, common, integers, packed, unpacked


def fitted(form):
    weight = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    return form.fit(weight, Metric([(torch.eye(64), torch.ones(6))]), "nearest")


def random_integers(bits, groups, seed=0):
    generator = torch.Generator().manual_seed(seed)
    least = -(2 ** (bits - 1))
    codes = torch.randint(least, -least, (3, 64), generator=generator, dtype=torch.int8)
    return Integers(codes, torch.randn(3, groups, generator=generator), bits)


SPARSE = of_share(6, 64, 16, 4, 0.5)


@pytest.mark.parametrize("form", [Int8(), Int4(group_size=16), SPARSE], ids=str)
def test_they_stand_for_the_weight(form):
    stored = fitted(form)
    found = integers(stored)
    assert torch.equal(dequantize_groups(found.codes, found.scale), stored.restore())


def test_what_is_more_than_a_scale_times_a_code_has_none():
    assert integers(of_factors(torch.ones(6, 2), torch.ones(2, 64))) is None
    assert integers(fitted(SPARSE.model_copy(update={"zero": True}))) is None


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
