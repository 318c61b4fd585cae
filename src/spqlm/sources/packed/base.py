"""What every way to store quantised weights says of itself, and how its tensors become weights."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from spqlm.checkpoint.headers import TensorHeader

WORD_BITS = 32


class Packing(ABC):
    """A way in which others store quantised weights.

    Attributes:
        settings: the `quantization_config` of the checkpoint at hand.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """Nothing is checked before `refusal`."""
        self.settings = settings

    @property
    @abstractmethod
    def spoken(self) -> str:
        """What the weights are, for people."""

    def refusal(self) -> str | None:
        """What of the settings cannot be turned back into weights; None where all of it can."""
        return None

    @property
    def note(self) -> str:
        """What to say of the weights that come of it."""
        return f"multiplied out of {self.spoken}: what that rounding lost stays lost"


class ByTransformers(Packing):
    """One that transformers itself turns back, without another package."""

    @abstractmethod
    def reader(self) -> Any:
        """What `from_pretrained` takes as `quantization_config` to read it in floats."""


class Packed(Packing):
    """One whose tensors are turned back here, a weight at a time.

    Attributes:
        parts: what tensors of a module are called behind its name, those that make up its weight.
        left_out: the same of those that only say how activations were rounded.
    """

    parts: ClassVar[tuple[str, ...]]
    left_out: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def holds(self, found: Mapping[str, TensorHeader]) -> bool:
        """Whether these parts of a module are a packed weight; else they are what they are."""

    @abstractmethod
    def unpack(self, found: Mapping[str, Tensor]) -> Tensor:
        """The weight.

        Args:
            found: tensors of a module by the names in `parts`.

        Returns:
            float32 [out, in].

        Raises:
            ValueError: shapes that do not fit together; says which.
            KeyError: a part is missing.
        """


def fields(words: Tensor, bits: int) -> Tensor:
    """What is packed in words, lowest bits first.

    Args:
        words: int32 [..., n].
        bits: of a field; divides 32.

    Returns:
        int16 [..., 32 / bits · n], each in [0, 2^bits).
    """
    shifts = torch.arange(0, WORD_BITS, bits, dtype=torch.int32)
    # An arithmetic shift repeats the sign above the field, which the mask takes off.
    parts = (words.unsqueeze(-1) >> shifts) & (2**bits - 1)
    return parts.to(torch.int16).flatten(-2)


def in_groups(per_group: Tensor, columns: int, index: Tensor | None = None) -> Tensor:
    """Values of groups of columns, for every column.

    Args:
        per_group: [rows, groups].
        columns: of the weight, in equal groups unless there is an index.
        index: group of each column, [columns].

    Returns:
        [rows, columns].

    Raises:
        ValueError: the groups do not divide the columns, or there is no such group.
    """
    groups = per_group.shape[1]
    if index is not None:
        index = index.long()
        if len(index) != columns or int(index.max()) >= groups or int(index.min()) < 0:
            raise ValueError(f"the index of {len(index)} columns is none of {groups} groups")
        return per_group[:, index]
    if columns % groups:
        raise ValueError(f"{groups} groups do not divide {columns} columns")
    return per_group.repeat_interleave(columns // groups, 1)
