"""Codes of few bits in bytes, without waste: planes of four, two and one bit, one behind the other.

A code of b bits, made non-negative, is cut into planes from its lowest bits on: 2 = 2, 3 = 2 + 1,
5 = 4 + 1, 6 = 4 + 2, 7 = 4 + 2 + 1. A row holds its planes one behind the other, so any width takes
just its bits, and what reads one plane reads all.

The order inside a plane suits vectors of bytes that hold even columns beside vectors that hold odd
ones, a BLOCK of columns at a time, as the two nibbles of a byte do:

- four bits: byte i of a row has column 2 i in its low nibble and column 2 i + 1 in its high one;
- one bit: of each block first a bit for every even column, then one for every odd column;
- two bits: with a quarter of a block's columns in bytes, byte i has, from the lowest bits on, the
  even column i, the even column i + quarter, and the odd columns of the same numbers.
"""

import torch
from torch import Tensor

BLOCK = 128
"""Columns that are laid out together; the last block of a row may be shorter."""

MULTIPLE = 16
"""What divides the columns of a row that has planes of one or two bits."""

PLANES = {2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1)}
"""Bits of the planes that a code of so many bits is cut into, lowest first."""


def multiple(bits: int) -> int:
    """What divides the columns of a row of codes of so many bits."""
    return {4: 2, 8: 1}.get(bits, MULTIPLE)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes as bytes.

    Args:
        codes: int8 [rows, columns] in [-2^(bits-1), 2^(bits-1) - 1]; `multiple` divides columns.
        bits: a key of PLANES, or 8, which are bytes already.

    Returns:
        uint8 [rows, columns · bits / 8]; for 8 bits int8.

    Raises:
        ValueError: columns that are no multiple.
    """
    if codes.shape[1] % multiple(bits):
        needed = f"rows are packed by {multiple(bits)} columns"
        raise ValueError(f"{needed}, but there are {codes.shape[1]}")
    if bits == 8:
        return codes.contiguous()
    left = (codes + 2 ** (bits - 1)).to(torch.uint8)
    planes = []
    for width in PLANES[bits]:
        planes.append(_packed_plane(left & (2**width - 1), width))
        left = left >> width
    return torch.cat(planes, dim=1)


def unpack(packed: Tensor, bits: int) -> Tensor:
    """Inverse of `pack`: int8 [rows, columns]."""
    if bits == 8:
        return packed
    columns = packed.shape[1] * 8 // bits
    codes = torch.zeros(len(packed), columns, dtype=torch.uint8, device=packed.device)
    start = shift = 0
    for width in PLANES[bits]:
        stop = start + columns * width // 8
        codes |= _unpacked_plane(packed[:, start:stop], columns, width) << shift
        start, shift = stop, shift + width
    return codes.to(torch.int8) - 2 ** (bits - 1)


def _packed_plane(values: Tensor, width: int) -> Tensor:
    """uint8 [rows, columns] below 2^width -> uint8 [rows, columns · width / 8]."""
    if width == 4:
        return values[:, ::2] | (values[:, 1::2] << 4)
    blocks = values.split(BLOCK, dim=1)
    return torch.cat([_packed_block(block, width) for block in _alike(blocks)], dim=1)


def _unpacked_plane(packed: Tensor, columns: int, width: int) -> Tensor:
    if width == 4:
        return torch.stack((packed & 15, packed >> 4), dim=2).flatten(1)
    parts = packed.split(BLOCK * width // 8, dim=1)
    return torch.cat([_unpacked_block(part, width) for part in _alike(parts)], dim=1)[:, :columns]


def _alike(blocks: tuple[Tensor, ...]) -> list[Tensor]:
    """Whole blocks as [rows, count, size], and the shorter last one as [rows, 1, size]."""
    whole = [block for block in blocks if block.shape == blocks[0].shape]
    rest = list(blocks[len(whole) :])
    return [torch.stack(whole, dim=1), *(block[:, None] for block in rest)]


def _packed_block(values: Tensor, width: int) -> Tensor:
    """uint8 [rows, blocks, columns] -> uint8 [rows, blocks · bytes]."""
    sides = torch.stack((values[..., ::2], values[..., 1::2]), dim=2)  # even and odd columns
    if width == 2:
        quarters = sides.unflatten(3, (2, -1)).flatten(2, 3)
        shifts = 2 * torch.arange(4, dtype=torch.uint8, device=values.device)
        return (quarters << shifts[:, None]).sum(2, dtype=torch.uint8).flatten(1)
    shifts = torch.arange(8, dtype=torch.uint8, device=values.device)
    return (sides.unflatten(3, (-1, 8)) << shifts).sum(4, dtype=torch.uint8).flatten(1)


def _unpacked_block(packed: Tensor, width: int) -> Tensor:
    """uint8 [rows, blocks, bytes] -> uint8 [rows, blocks · columns]."""
    if width == 2:
        shifts = 2 * torch.arange(4, dtype=torch.uint8, device=packed.device)
        quarters = (packed[:, :, None] >> shifts[:, None]) & 3
        sides = quarters.unflatten(2, (2, 2)).flatten(3)
    else:
        shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
        sides = ((packed.unflatten(2, (2, -1))[..., None] >> shifts) & 1).flatten(3)
    return sides.transpose(2, 3).flatten(1)
