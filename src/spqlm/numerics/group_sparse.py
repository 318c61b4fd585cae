"""Which groups of a matrix are stored: bits, offsets, and the way back to the whole matrix."""

import torch
from torch import Tensor


def mask_bytes(groups: int) -> int:
    """Bytes of a row's mask."""
    return -(-groups // 8)


def pack_mask(keep: Tensor) -> Tensor:
    """Bool [rows, groups] -> uint8 [rows, ⌈groups / 8⌉], the first group in the lowest bit."""
    rows, groups = keep.shape
    padded = torch.zeros(rows, 8 * mask_bytes(groups), dtype=torch.uint8, device=keep.device)
    padded[:, :groups] = keep
    places = 2 ** torch.arange(8, dtype=torch.uint8, device=keep.device)
    return (padded.unflatten(1, (-1, 8)) * places).sum(2, dtype=torch.uint8)


def unpack_mask(mask: Tensor, groups: int) -> Tensor:
    """Inverse of `pack_mask`: bool [rows, groups]."""
    places = torch.arange(8, dtype=torch.uint8, device=mask.device)
    return ((mask[..., None] >> places) & 1).flatten(1)[:, :groups].bool()


def offsets_of(keep: Tensor) -> Tensor:
    """Stored groups before each row, int32 [rows + 1], from bool [rows, groups]."""
    counts = keep.sum(1, dtype=torch.int32)
    return torch.cat((counts.new_zeros(1), counts.cumsum(0, dtype=torch.int32)))


def spread(values: Tensor, keep: Tensor) -> Tensor:
    """A matrix of kept groups, zero elsewhere.

    Args:
        values: [kept, group_size].
        keep: bool [rows, groups].

    Returns:
        [rows, groups · group_size].
    """
    if not len(values):
        return values.new_zeros(keep.shape[0], keep.shape[1] * values.shape[1])
    # A place for every group, without asking where they are: this has no sync and works on `meta`.
    places = (keep.flatten().cumsum(0) - 1).clamp_min(0).reshape(keep.shape)
    return values[places].masked_fill(~keep[..., None], 0).flatten(1)
