"""Group-sparse integers (GQSA, arXiv 2412.17560): rows of 1 × G blocks, only some of them stored.

A row is cut into groups of consecutive inputs; whole groups are dropped and the others stored in
order, row by row, each with a scale of its own. A bit for every group says whether it is there, and
an offset for every row where its first one lies, so work can be split evenly over the stored groups
and begin anywhere. In 4 bits, groups of 16, half of them dropped and a half-precision scale, an
original weight takes 2.56 bits and an offset's share.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from spqlm.numerics import integer


class GroupSparse(NamedTuple):
    """A weight in this form: scale · code + zero in the groups that are stored, else 0.

    Attributes:
        codes: packed 4-bit codes, uint8 [kept, group_size / 2], or int8 [kept, group_size].
        scale: [kept], of either sign, never 0, in the model's dtype.
        zero: [kept], what is added to scale · code, in the model's dtype; None for nothing.
        mask: uint8 [rows, ⌈groups / 8⌉]: bit g % 8 of byte g // 8 says whether group g is stored.
        offsets: int32 [rows + 1], stored groups before each row.
        columns: inputs of a row.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    mask: Tensor
    offsets: Tensor
    columns: int

    @property
    def bits(self) -> Literal[4, 8]:
        """Of a code."""
        return 4 if self.codes.dtype == torch.uint8 else 8

    @property
    def group_size(self) -> int:
        """Inputs in a group."""
        return int(self.codes.shape[1]) * 8 // self.bits

    @property
    def groups(self) -> int:
        """In a row, stored or not."""
        return self.columns // self.group_size

    @property
    def keep(self) -> Tensor:
        """Which groups are stored, bool [rows, groups]."""
        return unpack_mask(self.mask, self.groups)


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


def pack(codes: Tensor, scale: Tensor, zero: Tensor | None, keep: Tensor, bits: int) -> GroupSparse:
    """Store the groups that are kept.

    Args:
        codes: int8 [rows, columns], in [-8, 7] for 4 bits.
        scale: [rows, groups], not zero where kept.
        zero: [rows, groups] or None.
        keep: bool [rows, groups].
        bits: 4 or 8.

    Raises:
        ValueError: bits that are neither, or groups that do not divide the columns.
    """
    groups, columns = keep.shape[1], codes.shape[1]
    if bits not in (4, 8):
        raise ValueError(f"codes have 4 or 8 bits, not {bits}")
    if columns % groups:
        raise ValueError(f"{groups} groups do not divide {columns} columns")
    stored = codes.unflatten(1, (groups, -1))[keep]
    return GroupSparse(
        integer.pack_int4(stored) if bits == 4 else stored.contiguous(),
        scale[keep],
        None if zero is None else zero[keep],
        pack_mask(keep),
        _offsets(keep),
        columns,
    )


def _offsets(keep: Tensor) -> Tensor:
    counts = keep.sum(1, dtype=torch.int32)
    return torch.cat((counts.new_zeros(1), counts.cumsum(0, dtype=torch.int32)))


def stored_codes(weight: GroupSparse) -> Tensor:
    """Of the kept groups, int8 [kept, group_size]."""
    return integer.unpack_int4(weight.codes) if weight.bits == 4 else weight.codes


def spread(values: Tensor, keep: Tensor) -> Tensor:
    """A matrix of kept groups, zero elsewhere.

    Args:
        values: [kept, group_size].
        keep: bool [rows, groups].

    Returns:
        [rows, groups · group_size].
    """
    dense = values.new_zeros(*keep.shape, values.shape[1])
    dense[keep] = values
    return dense.flatten(1)


def dequantize(weight: GroupSparse) -> Tensor:
    """The whole matrix, [rows, columns] in the scale's dtype."""
    values = stored_codes(weight).to(weight.scale.dtype) * weight.scale[:, None]
    if weight.zero is not None:
        values = values + weight.zero[:, None]
    return spread(values, weight.keep)


def check(weight: GroupSparse) -> None:
    """Refuse an index that kernels could not follow.

    Raises:
        ValueError: says what is wrong: padding bits that are set, or offsets that do not count the
            mask's bits.
    """
    keep = weight.keep
    if not torch.equal(pack_mask(keep), weight.mask):
        raise ValueError("has a mask with bits beyond the last group")
    if not torch.equal(_offsets(keep), weight.offsets):
        raise ValueError("has offsets that do not count the groups in its mask")
    if int(weight.offsets[-1]) != len(weight.codes):
        raise ValueError(
            f"has a mask of {int(weight.offsets[-1])} groups, but {len(weight.codes)} are stored"
        )


def take_rows(weight: GroupSparse, index: Tensor) -> GroupSparse:
    """Some rows.

    Args:
        weight: of any shape.
        index: int64 [taken].
    """
    keep = weight.keep
    places = torch.zeros(keep.shape, dtype=torch.int64, device=keep.device)
    places[keep] = torch.arange(len(weight.codes), device=keep.device)
    return _take(weight, places[index][keep[index]], keep[index])


def take_groups(weight: GroupSparse, first: int, last: int) -> GroupSparse:
    """The groups first <= g < last of every row, as a weight of fewer columns."""
    keep = weight.keep
    inside = torch.zeros_like(keep)
    inside[:, first:last] = True
    return _take(weight, inside[keep].nonzero()[:, 0], keep[:, first:last])


def _take(weight: GroupSparse, index: Tensor, keep: Tensor) -> GroupSparse:
    return GroupSparse(
        weight.codes[index],
        weight.scale[index],
        None if weight.zero is None else weight.zero[index],
        pack_mask(keep),
        _offsets(keep),
        keep.shape[1] * weight.group_size,
    )


def stored_bytes(
    rows: int, columns: int, kept: int, group_size: int, bits: int, scale_bytes: int, zero: bool
) -> int:
    """Bytes of codes, scales, zeros, mask and offsets."""
    group = group_size * bits // 8 + scale_bytes * (2 if zero else 1)
    return kept * group + rows * mask_bytes(columns // group_size) + 4 * (rows + 1)
