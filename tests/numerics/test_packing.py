import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from spqlm.numerics import integer, packing

BITS = sorted(packing.PLANES)


def random_codes(rows: int, columns: int, bits: int, seed: int = 0) -> Tensor:
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1)
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, (rows, columns), generator=generator).to(torch.int8)


@given(
    bits=st.sampled_from(BITS),
    rows=st.integers(1, 5),
    sixteens=st.integers(1, 40),
    seed=st.integers(0, 3),
)
def test_packing_loses_nothing_and_wastes_nothing(bits, rows, sixteens, seed):
    codes = random_codes(rows, 16 * sixteens, bits, seed)
    packed = packing.pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (rows, 2 * sixteens * bits)
    assert torch.equal(packing.unpack(packed, bits), codes)


def test_four_bits_lie_as_in_int4():
    codes = random_codes(3, 160, 4)
    assert torch.equal(packing.pack(codes, 4), integer.pack_int4(codes))


def place(column: int, columns: int, width: int) -> tuple[int, int]:
    """Byte and first bit of a column in its plane, by the words of the module's docstring."""
    if width == 4:
        return column // 2, 4 * (column % 2)
    block = column // packing.BLOCK
    size = min(packing.BLOCK, columns - block * packing.BLOCK)
    start, within = block * packing.BLOCK * width // 8, column % packing.BLOCK
    number, odd = within // 2, within % 2
    if width == 1:
        return start + odd * size // 16 + number // 8, number % 8
    quarter = size // 4
    return start + number % quarter, 2 * (2 * odd + number // quarter)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("columns", [16, 128, 144, 576])
def test_every_bit_is_where_the_words_say(bits, columns):
    codes = random_codes(2, columns, bits)
    packed, start, shift = packing.pack(codes, bits), 0, 0
    for width in packing.PLANES[bits]:
        plane = packed[:, start : start + columns * width // 8]
        for column in range(columns):
            byte, bit = place(column, columns, width)
            found = (plane[:, byte].int() >> bit) & (2**width - 1)
            stored = codes[:, column].int() + 2 ** (bits - 1)
            assert torch.equal(found, (stored >> shift) & (2**width - 1))
        start, shift = start + columns * width // 8, shift + width


def test_rows_that_are_no_multiple_are_refused():
    with pytest.raises(ValueError, match="packed by 16 columns, but there are 24"):
        packing.pack(torch.zeros(2, 24, dtype=torch.int8), 3)


def test_no_values_are_needed_to_know_the_shapes():
    packed = packing.pack(torch.empty(4, 576, dtype=torch.int8, device="meta"), 5)
    assert packing.unpack(packed, 5).shape == (4, 576)
