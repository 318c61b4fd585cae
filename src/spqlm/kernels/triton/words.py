"""Codes times inputs while the codes lie in words of 32 bits, without unpacking them.

The bits of an integer n below 2^24, read as float32, are the number n * 2^-149: subnormal, or in
the first binade above, which goes on in the same steps. So a code is multiplied where it lies: one
that begins at bit p is worth code * 2^(p - 149), and its input times 2^(64 - p) makes
code * input * 2^-85 of it. A mask and a multiplication for each code are all there is; both factors
are exact, so only the sums are rounded. Conversions from integers would take more time than memory.

Codes lie in words with an offset, half of their number, which is taken off the sums again. Inputs
must stay below 2^63.
"""

import triton
import triton.language as tl

from spqlm.kernels.triton.unpacking import sides

LIFT_0 = tl.constexpr(2.0**64)
LIFT_4 = tl.constexpr(2.0**60)
LIFT_8 = tl.constexpr(2.0**56)
LIFT_12 = tl.constexpr(2.0**52)
LIFT_16 = tl.constexpr(2.0**48)
LIFT_20 = tl.constexpr(2.0**44)
UNIT = tl.constexpr(2.0**85)


@triton.jit
def _inputs(pair: tl.tensor, DTYPE: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    even, odd = sides(pair, DTYPE)
    return even.to(tl.float32), odd.to(tl.float32)


@triton.jit
def _at(words: tl.tensor, BITS: tl.constexpr) -> tl.tensor:
    return (words & BITS).to(tl.float32, bitcast=True)


@triton.jit
def _eight(
    words: tl.tensor,
    x0: tl.tensor,
    x1: tl.tensor,
    x2: tl.tensor,
    x3: tl.tensor,
    x4: tl.tensor,
    x5: tl.tensor,
    x6: tl.tensor,
    x7: tl.tensor,
) -> tl.tensor:
    """2^-85 of the sum of a word's eight nibbles times their inputs."""
    top = words >> 24
    total = _at(words, 0xF) * (x0 * LIFT_0)
    total += _at(words, 0xF0) * (x1 * LIFT_4)
    total += _at(words, 0xF00) * (x2 * LIFT_8)
    total += _at(words, 0xF000) * (x3 * LIFT_12)
    total += _at(words, 0xF0000) * (x4 * LIFT_16)
    total += _at(words, 0xF00000) * (x5 * LIFT_20)
    total += _at(top, 0xF) * (x6 * LIFT_0)
    total += _at(top, 0xF0) * (x7 * LIFT_4)
    return total


@triton.jit
def times_nibbles(
    words: tl.tensor, higher: tl.tensor, pairs: tl.tensor, DTYPE: tl.constexpr, BITS: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """For every word the sum of its 8 codes times their inputs, and the sum of these inputs.

    Args:
        words: int32 [..., ITEMS, WORDS], the four lowest bits of each code, or all that there are;
            codes are stored plus half of their number.
        higher: the other bits, in the same way; not looked at where BITS is at most four.
        pairs: [ITEMS, 4 * WORDS], inputs in twos.
        DTYPE: of an input.
        BITS: of a code, 2 to 7.

    Returns:
        float32 [..., ITEMS, WORDS], and float32 [ITEMS, WORDS].
    """
    ITEMS: tl.constexpr = pairs.shape[0]
    WORDS: tl.constexpr = pairs.shape[1] // 4
    first, second = tl.split(tl.reshape(pairs, [ITEMS, 2 * WORDS, 2]))
    a, c = tl.split(tl.reshape(first, [ITEMS, WORDS, 2]))
    b, d = tl.split(tl.reshape(second, [ITEMS, WORDS, 2]))
    x0, x1 = _inputs(a, DTYPE)
    x2, x3 = _inputs(b, DTYPE)
    x4, x5 = _inputs(c, DTYPE)
    x6, x7 = _inputs(d, DTYPE)
    inputs = ((x0 + x1) + (x2 + x3)) + ((x4 + x5) + (x6 + x7))
    total = _eight(words, x0, x1, x2, x3, x4, x5, x6, x7)
    if BITS > 4:
        total += 16.0 * _eight(higher, x0, x1, x2, x3, x4, x5, x6, x7)
    return total * UNIT - 2.0 ** (BITS - 1) * inputs, inputs


@triton.jit
def times_bytes(
    words: tl.tensor, pairs: tl.tensor, DTYPE: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """As `times_nibbles`, for words of 4 codes in two's complement.

    Args:
        words: int32 [..., ITEMS, WORDS].
        pairs: [ITEMS, 2 * WORDS], inputs in twos.
        DTYPE: of an input.

    Returns:
        float32 [..., ITEMS, WORDS], and float32 [ITEMS, WORDS].
    """
    ITEMS: tl.constexpr = pairs.shape[0]
    WORDS: tl.constexpr = pairs.shape[1] // 2
    a, b = tl.split(tl.reshape(pairs, [ITEMS, WORDS, 2]))
    x0, x1 = _inputs(a, DTYPE)
    x2, x3 = _inputs(b, DTYPE)
    inputs = (x0 + x1) + (x2 + x3)
    # Each code plus 128, which is not negative.
    words = words ^ -0x7F7F7F80
    total = _at(words, 0xFF) * (x0 * LIFT_0)
    total += _at(words, 0xFF00) * (x1 * LIFT_8)
    total += _at(words, 0xFF0000) * (x2 * LIFT_16)
    total += _at(words >> 24, 0xFF) * (x3 * LIFT_0)
    return total * UNIT - 128.0 * inputs, inputs
