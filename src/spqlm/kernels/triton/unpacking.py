"""What the kernels share: inputs from pairs, codes from planes, and kept groups from bits.

Codes of few bits lie in planes of four, two and one bit (`numerics.packing`). Here every plane
comes as nibbles: a byte has an even column's bits in its low half and the next column's in its high
half, as the plane of four bits has them already. So what reads four bits reads all, a byte or a
word at a time.
"""

from collections.abc import Sequence

import triton
import triton.language as tl

from spqlm.numerics.nonlinear import LEVELS

BLOCK_PAIRS = tl.constexpr(64)
"""Pairs of columns that are laid out together."""

LOWEST_LEVEL = tl.constexpr(-64)
"""Of every table. Seven bits hold a level less this one."""


def _words(levels: Sequence[int]) -> tuple[int, ...]:
    """Levels less the lowest as bytes, eight in an integer, the first in its lowest byte."""
    raised = bytes(level - LOWEST_LEVEL.value for level in levels)
    return tuple(int.from_bytes(raised[at : at + 8], "little") for at in range(0, len(raised), 8))


LEVEL_WORDS = tl.constexpr(tuple(_words(LEVELS[bits]) for bits in sorted(LEVELS)))
"""Of codes of two bits, of three, and so on."""


@triton.jit
def sides(pair: tl.tensor, DTYPE: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """The even and the odd one of two inputs that were loaded as one integer, in their DTYPE.

    Splitting a tile's last axis moves values between threads; splitting integers does not.
    """
    if DTYPE == tl.float32:
        low, high = pair.to(tl.int32), (pair >> 32).to(tl.int32)
    else:
        low, high = pair.to(tl.int16), (pair >> 16).to(tl.int16)
    return low.to(DTYPE, bitcast=True), high.to(DTYPE, bitcast=True)


@triton.jit
def row_units(width: tl.tensor, BITS: tl.constexpr) -> tl.tensor:
    """Stored units of a row whose codes have so many bits, of `width` units of nibbles."""
    return width if BITS == 4 else width // 4 * BITS


@triton.jit
def planes(
    start: tl.tensor,
    unit: tl.tensor,
    width: tl.tensor,
    inside: tl.tensor,
    BITS: tl.constexpr,
    PAIRS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Codes as nibbles: their four lowest bits, and where there are more, the others.

    Args:
        start: where a row begins: pointers to units, bytes or words of 32 bits.
        unit: which units of nibbles of the row.
        width: units of nibbles in a row.
        inside: which of them are wanted.
        BITS: of a code, 2 to 7.
        PAIRS: of columns in a unit, 1 or 4.

    Returns:
        two alike, of nothing but the lowest bits where BITS is at most four.
    """
    if BITS & 4:
        lowest = tl.load(start + unit, mask=inside, other=0)
        start += width
    if BITS != 4:
        if BITS & 2:
            rest = _crumbs(start, unit, width, inside, PAIRS)
            start += width // 2
            if BITS & 1:
                rest |= _single_bits(start, unit, width, inside, PAIRS) << 2
        else:
            rest = _single_bits(start, unit, width, inside, PAIRS)
        if BITS < 4:
            lowest = rest
    else:
        rest = lowest
    return lowest, rest


@triton.jit
def _crumbs(
    start: tl.tensor, unit: tl.tensor, width: tl.tensor, inside: tl.tensor, PAIRS: tl.constexpr
) -> tl.tensor:
    """The plane of two bits: a byte has those of two columns of each half of a block."""
    UNITS: tl.constexpr = BLOCK_PAIRS // PAIRS
    place = unit % UNITS
    first = unit - place
    half = tl.minimum(width - first, UNITS) // 2
    second = place >= half
    stored = tl.load(
        start + first // 2 + tl.where(second, place - half, place), mask=inside, other=0
    )
    return (stored.to(tl.int32) >> tl.where(second, 2, 0)) & 0x33333333


@triton.jit
def _single_bits(
    start: tl.tensor, unit: tl.tensor, width: tl.tensor, inside: tl.tensor, PAIRS: tl.constexpr
) -> tl.tensor:
    """The plane of one bit: of each block the even columns, and then the odd ones."""
    UNITS: tl.constexpr = BLOCK_PAIRS // PAIRS
    place = unit % UNITS
    first = unit - place
    odds = tl.minimum(width - first, UNITS) * PAIRS // 8
    pair = place * PAIRS
    at = start.to(tl.pointer_type(tl.uint8), bitcast=True) + first * PAIRS // 4 + pair // 8
    even = tl.load(at, mask=inside, other=0).to(tl.int32) >> (pair % 8)
    odd = tl.load(at + odds, mask=inside, other=0).to(tl.int32) >> (pair % 8)
    return _spread(even, PAIRS) | (_spread(odd, PAIRS) << 4)


@triton.jit
def _spread(bits: tl.tensor, PAIRS: tl.constexpr) -> tl.tensor:
    """The lowest bits, each into a byte of its own."""
    return ((bits & (2**PAIRS - 1)) * 0x204081) & 0x01010101


@triton.jit
def pair_codes(
    start: tl.tensor, pair: tl.tensor, width: tl.tensor, inside: tl.tensor, BITS: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """The codes of the even and of the odd columns, not yet signed, in int16."""
    low, high = planes(start, pair, width, inside, BITS, 1)
    low = low.to(tl.int16)
    even, odd = low & 15, low >> 4
    if BITS > 4:
        high = high.to(tl.int16)
        even |= (high & 15) << 4
        odd |= high & 0xF0
    return even, odd


@triton.jit
def _raised_level(bits: tl.tensor, BITS: tl.constexpr) -> tl.tensor:
    """The level of a code less the lowest, in the type of its bits; constants hold the table."""
    WORDS: tl.constexpr = LEVEL_WORDS[BITS - 2]
    word = tl.full(bits.shape, WORDS[0], tl.int64)
    for number in tl.static_range(1, len(WORDS)):
        word = tl.where(bits < 8 * number, word, WORDS[number])
    return (word >> ((bits & 7) * 8).to(tl.int64)).to(bits.dtype) & 127


@triton.jit
def code(
    bits: tl.tensor, DTYPE: tl.constexpr, BITS: tl.constexpr, NONLINEAR: tl.constexpr
) -> tl.tensor:
    """A code, or the level it stands for, exactly, from its bits in an int16: 0 is the lowest code.

    In half precision the bits go into the mantissa of a power of two, for conversions from integers
    are what a GPU does slowest.
    """
    LOWEST: tl.constexpr = LOWEST_LEVEL if NONLINEAR else -(2 ** (BITS - 1))
    if NONLINEAR:
        bits = _raised_level(bits, BITS)
    if DTYPE == tl.bfloat16:
        return (bits | 0x4300).to(DTYPE, bitcast=True) - (128.0 - LOWEST)
    elif DTYPE == tl.float16:
        return (bits | 0x6400).to(DTYPE, bitcast=True) - (1024.0 - LOWEST)
    else:
        return bits.to(tl.float32) + LOWEST


@triton.jit
def signed(stored: tl.tensor) -> tl.tensor:
    """float32 of int8 codes, by way of the mantissa of 2^23, as in `code`."""
    bits = stored.to(tl.uint8, bitcast=True).to(tl.int32) ^ 128
    return (bits | 0x4B000000).to(tl.float32, bitcast=True) - 8388736.0


@triton.jit
def nibbles(stored: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """The codes of the even and of the odd columns, float32, from packed bytes of any shape."""
    return (stored & 15).to(tl.float32) - 8.0, (stored >> 4).to(tl.float32) - 8.0


@triton.jit
def kept_bits(
    mask_ptr: tl.tensor, row: tl.tensor, group: tl.tensor, mask_bytes: tl.tensor
) -> tl.tensor:
    """Whether the row's groups are kept, 0 or 1; 0 beyond its end."""
    at = group // 8
    byte = tl.load(mask_ptr + row.to(tl.int64) * mask_bytes + at, mask=at < mask_bytes, other=0)
    return (byte.to(tl.int32) >> (group % 8)) & 1
