import pytest
import torch
from tests.stored_weights import definition, int4, random, random_codes

from spqlm.errors import SpqError
from spqlm.formats.int4 import Int4
from spqlm.numerics import integer


@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_weights_are_near_the_dense_ones(group_size):
    weight = random(6, 128)
    scale = integer.search_group_scale(weight, None, group_size)
    stored = int4(integer.quantize_groups(weight, scale), scale)
    assert stored.format == Int4(group_size=group_size)
    off = (definition(stored) - weight.double()).square().mean().sqrt()
    assert float(off) < 0.15


def test_codes_lie_two_to_a_byte_the_even_column_below():
    codes = torch.tensor([[-8, 7, 0, -1]], dtype=torch.int8)
    stored = int4(codes, torch.ones(1, 1))
    assert stored.codes.tolist() == [[0xF0, 0x78]]
    assert torch.equal(stored.unpacked, codes)


def test_whole_groups_of_inputs_are_taken_in_any_number():
    stored = int4(random_codes(5, 128, 4), random(5, 4))
    index = torch.cat((torch.arange(32, 64), torch.arange(96, 128)))
    assert torch.equal(stored.take_columns(index).restore(), stored.restore()[:, index])
    for wrong in (torch.arange(16, 48), torch.arange(31), torch.tensor([0])):
        with pytest.raises(SpqError, match="int4 go by whole groups of 32"):
            stored.take_columns(wrong)


@pytest.mark.parametrize("bad", [0.0, -0.0, float("nan"), float("inf"), float("-inf")])
def test_a_scale_of_zero_or_not_finite_is_refused_and_a_negative_one_is_not(bad):
    stored = int4(random_codes(5, 128, 4), -torch.ones(5, 4))
    stored.check()
    stored.scale[1, -1] = bad
    with pytest.raises(ValueError, match="scale that is zero or not finite"):
        stored.check()
