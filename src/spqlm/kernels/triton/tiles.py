"""What a program computes of a product with many rows of input, chosen ahead for each kind of GPU.

Nothing is tried out when a shape comes for the first time: to compile and time a candidate takes
seconds. Tiles are the largest that the compiler keeps in registers and shared memory, for all
widths of codes (`tests/kernels/triton/test_compilation.py`).
"""

from functools import cache
from typing import NamedTuple

import torch


class Tile(NamedTuple):
    """Sides of a tile, and how it is computed.

    Attributes:
        rows: outputs.
        height: rows of input.
        depth: columns at a time; fewer where a scale serves fewer.
        warps: of a program.
        stages: depths that are on their way from memory.
    """

    rows: int
    height: int
    depth: int
    warps: int
    stages: int


_SMALL = Tile(64, 64, 64, 4, 4)
WARP_TILES = (Tile(128, 128, 32, 8, 3), _SMALL)
"""The larger first, for tensor cores that a warp drives and 99 KiB of shared memory."""
GROUP_TILES = (Tile(128, 256, 32, 8, 4), Tile(128, 128, 64, 8, 3), _SMALL)
"""For those that four warps drive together, and 227 KiB."""

_BY_CAPABILITY = {9: GROUP_TILES, 10: GROUP_TILES}


def tile_for(rows: int, count: int, device: torch.device) -> Tile:
    """The largest tile that leaves no more than a quarter of the processors without a program.

    Args:
        rows: outputs.
        count: rows of input.
        device: that computes.
    """
    tiles, processors = tiles_on(device), _processors(device)
    for tile in tiles:
        if -(-rows // tile.rows) * -(-count // tile.height) * 4 >= processors * 3:
            return tile
    return tiles[-1]


@cache
def tiles_on(device: torch.device) -> tuple[Tile, ...]:
    """Those that a device may choose from, the largest first."""
    if device.type != "cuda":  # In Triton's interpreter.
        return WARP_TILES
    major = torch.cuda.get_device_properties(device).major
    return _BY_CAPABILITY.get(major, WARP_TILES)


@cache
def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
