"""What the kernels share: inputs from pairs, codes from bytes, and kept groups from bits."""

import triton
import triton.language as tl


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
def nibbles(stored: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """The codes of the even and of the odd columns, float32, from packed bytes of any shape."""
    return (stored & 15).to(tl.float32) - 8.0, (stored >> 4).to(tl.float32) - 8.0


@triton.jit
def nibble(bits: tl.tensor, DTYPE: tl.constexpr) -> tl.tensor:
    """The code, exactly, of four bits in an int16.

    In half precision the bits go into the mantissa of a power of two, for conversions from integers
    are what a GPU does slowest.
    """
    if DTYPE == tl.bfloat16:
        return (bits | 0x4300).to(DTYPE, bitcast=True) - 136.0
    elif DTYPE == tl.float16:
        return (bits | 0x6400).to(DTYPE, bitcast=True) - 1032.0
    else:
        return bits.to(tl.float32) - 8.0


@triton.jit
def signed(stored: tl.tensor) -> tl.tensor:
    """float32 of int8 codes, by way of the mantissa of 2^23, as in `nibble`."""
    bits = stored.to(tl.uint8, bitcast=True).to(tl.int32) ^ 128
    return (bits | 0x4B000000).to(tl.float32, bitcast=True) - 8388736.0


@triton.jit
def kept_bits(
    mask_ptr: tl.tensor, row: tl.tensor, group: tl.tensor, mask_bytes: tl.tensor
) -> tl.tensor:
    """Whether the row's groups are kept, 0 or 1; 0 beyond its end."""
    at = group // 8
    byte = tl.load(mask_ptr + row.to(tl.int64) * mask_bytes + at, mask=at < mask_bytes, other=0)
    return (byte.to(tl.int32) >> (group % 8)) & 1
