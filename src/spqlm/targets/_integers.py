"""Stored weights as integers with a scale for each group of inputs, which other programs share."""

from typing import NamedTuple

import torch
from torch import Tensor

from spqlm.checkpoint.spec import WeightSpec
from spqlm.formats import Format, StoredWeight
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
    """

    codes: Tensor
    scale: Tensor
    bits: int

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

    Dropped groups of a group-sparse weight are codes of zero.
    """
    if isinstance(weight, Int8Weight):
        scale = weight.scale.expand(len(weight.codes))[:, None]
        return Integers(weight.codes, scale, 8)
    if isinstance(weight, GroupedWeight):
        return Integers(weight.unpacked, weight.scale, weight.format.bits)
    if isinstance(weight, GroupSparseWeight) and weight.zero is None:
        scale = torch.ones_like(weight.scale[:1]).expand(weight.keep.shape).clone()
        scale[weight.keep] = weight.scale
        return Integers(spread(weight.unpacked, weight.keep), scale, weight.format.bits)
    return None


def shared_columns(form: Format, columns: int) -> int | None:
    """Columns that share a scale; None where `integers` gives none."""
    if isinstance(form, Int8):
        return columns
    if isinstance(form, Grouped) or (isinstance(form, GroupSparse) and not form.zero):
        return form.group_size
    return None


def grouping_refusal(spec: WeightSpec, multiple: int) -> str | None:
    """Why a weight has no scales for whole groups of `multiple` columns; None where it has."""
    columns = spec.place.shape[1]
    shared = shared_columns(spec.form, columns)
    if spec.low_rank:
        return "it is the product of two factors"
    if shared is None:
        return f"{spec.form.describe(*spec.place.shape)} is more than a scale times a code"
    if columns % multiple:
        return f"its {columns} inputs are no multiple of {multiple}"
    if shared % multiple:
        return f"{shared} of its inputs share a scale, no multiple of {multiple}"
    return None
