"""Stored weights as integers with a scale for each group of inputs, which other programs share."""

from math import gcd
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from spqlm.checkpoint.spec import WeightSpec
from spqlm.formats import Format, StoredWeight, parse
from spqlm.formats._blocks import BlockWeight, InBlocks
from spqlm.formats._grouped import Grouped, GroupedWeight
from spqlm.formats.group_sparse import GroupSparse, GroupSparseWeight
from spqlm.formats.int8 import Int8, Int8Weight
from spqlm.numerics.group_sparse import spread


class Integers(NamedTuple):
    """A weight [rows, columns] as scale · code.

    Attributes:
        codes: int8 [rows, columns] in [-2^(bits-1), 2^(bits-1) - 1].
        scale: [rows, groups] of consecutive columns, of either sign, in the model's dtype.
        bits: of a code.
        int8_inputs: whether what enters the weight is rounded to int8.
    """

    codes: Tensor
    scale: Tensor
    bits: int
    int8_inputs: bool = False

    @property
    def group_size(self) -> int:
        """Columns that share a scale."""
        return self.codes.shape[1] // self.scale.shape[1]

    def regrouped(self, group_size: int) -> "Integers":
        """The same numbers with each scale repeated for smaller groups; divides the group size."""
        return self._replace(
            scale=self.scale.repeat_interleave(self.group_size // group_size, dim=1)
        )


def integers(weight: StoredWeight) -> Integers | None:
    """The codes and scales of a weight; None where it is not of this kind.

    Dropped groups of a group-sparse weight are codes of zero. Levels that are not evenly spaced are
    codes of eight bits.
    """
    if isinstance(weight, Int8Weight):
        scale = weight.scale.expand(len(weight.codes))[:, None]
        return Integers(weight.codes, scale, 8, weight.format.rounds_inputs)
    if isinstance(weight, GroupedWeight):
        return Integers(weight.unpacked, weight.scale, weight.format.bits)
    if isinstance(weight, GroupSparseWeight) and weight.zero is None:
        scale = torch.ones_like(weight.scale[:1]).expand(weight.keep.shape).clone()
        scale[weight.keep] = weight.scale
        return Integers(spread(weight.unpacked, weight.keep), scale, weight.format.bits)
    if isinstance(weight, BlockWeight) and _scaled(weight.format):
        levels = weight.format.grid.level(weight.unpacked.codes)
        return Integers(levels.to(torch.int8), weight.plain.scale, LEVEL_BITS)
    return None


def _scaled(form: InBlocks) -> bool:
    """Whether its weights are a float times a level, and nothing more."""
    return form.grid.multiples is None and not form.grid.shifted


def common(weights: list[Integers]) -> list[Integers]:
    """The same numbers in one scheme: the most bits of any, and groups that divide all groups."""
    if not weights:
        return []
    bits = max(weight.bits for weight in weights)
    size = gcd(*(weight.group_size for weight in weights))
    return [weight.regrouped(size)._replace(bits=bits) for weight in weights]


class Scheme(NamedTuple):
    """What `integers` gives of weights in a format: bits of a code, columns that share a scale."""

    bits: int
    group_size: int


LEVEL_BITS = 8
"""Of a code that holds any level."""

OFFERED: tuple[Format, ...] = tuple(
    parse({f"int{bits}": {"group_size": size}})
    for bits, sizes in {2: (32, 64), 3: (32, 64, 128), 4: (64, 128), 5: (64,), 6: (64,)}.items()
    for size in sizes
)
"""Integers that a byte budget may take, whatever else its recipe offers."""


def scheme(form: Format, columns: int) -> Scheme | None:
    """That of a format; None where `integers` gives none."""
    if form.rounds_inputs:
        return None
    if isinstance(form, Int8):
        return Scheme(8, columns)
    if isinstance(form, Grouped) or (isinstance(form, GroupSparse) and not form.zero):
        return Scheme(form.bits, form.group_size)
    if isinstance(form, InBlocks) and _scaled(form):
        return Scheme(LEVEL_BITS, form.grid.block)
    return None


def widened(form: Format) -> str | None:
    """Why levels of a format are not worth their bytes as integers; None where they may be."""
    if not isinstance(form, InBlocks) or form.bits == LEVEL_BITS or not _scaled(form):
        return None
    return f"its levels take {LEVEL_BITS} bits there"


def grouping_refusal(spec: WeightSpec, multiple: int) -> str | None:
    """Why a weight has no scales for whole groups of `multiple` columns; None where it has."""
    columns = spec.place.shape[1]
    found = scheme(spec.form, columns)
    if spec.low_rank:
        return "it is the product of two factors"
    if spec.form.rounds_inputs:
        return "what enters it is rounded to int8"
    if found is None:
        return f"{spec.form.describe(*spec.place.shape)} is more than a scale times a code"
    if columns % multiple:
        return f"its {columns} inputs are no multiple of {multiple}"
    if found.group_size % multiple:
        return f"{found.group_size} of its inputs share a scale, no multiple of {multiple}"
    return None


def packed_bytes(rows: int, columns: int, bits: int) -> int:
    """Of what `packed` gives."""
    return rows * -(-columns * bits // 32) * 4


def packed(weight: Integers) -> Tensor:
    """Codes plus half of their range, one behind the other, lowest bits first, in words.

    Returns:
        int32 [rows, ⌈columns · bits / 32⌉].
    """
    raised = (weight.codes.to(torch.int16) + 2 ** (weight.bits - 1)).to(torch.uint8)
    bits = np.unpackbits(raised.cpu().numpy()[..., None], axis=2, bitorder="little")
    rows = np.packbits(bits[..., : weight.bits].reshape(len(raised), -1), 1, bitorder="little")
    padded = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 4)))
    return torch.from_numpy(padded).view(torch.int32)


def unpacked(words: Tensor, bits: int, columns: int) -> Tensor:
    """Inverse of `packed`: int8 [rows, columns]."""
    rows = words.contiguous().view(torch.uint8).numpy()
    found = np.unpackbits(rows, axis=1, count=columns * bits, bitorder="little")
    raised = np.packbits(found.reshape(len(rows), columns, bits), axis=2, bitorder="little")
    return (torch.from_numpy(raised[..., 0]).to(torch.int16) - 2 ** (bits - 1)).to(torch.int8)
