"""What the kernels share: codes from bytes, and kept groups from bits."""

import triton
import triton.language as tl


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
