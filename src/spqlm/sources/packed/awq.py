"""AWQ checkpoints in AutoAWQ's layout `gemm` (arXiv 2306.00978).

A linear layer has `qweight`, int32 [in, out / 8], `qzeros`, int32 [in / group, out / 8], both with
the outputs of a word in the order of `ORDER`, and `scales`, [in / group, out].
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from spqlm.checkpoint.headers import TensorHeader
from spqlm.sources.packed.base import Packed, fields, in_groups

BITS = 4
# Which output of eight the fields of a word belong to, lowest bits first.
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


class Awq(Packed):
    """See the module."""

    parts: ClassVar[tuple[str, ...]] = ("qweight", "qzeros", "scales")

    def refusal(self) -> str | None:
        """Other layouts and widths."""
        layout = str(self.settings.get("version") or self.settings.get("format") or "gemm").lower()
        if layout != "gemm":
            return f"the layout {layout!r}"
        bits = self.settings.get("bits", self.settings.get("w_bit"))
        return None if bits == BITS else f"a width of {bits} bits"

    @property
    def spoken(self) -> str:
        """With groups."""
        size = self.settings.get("group_size", self.settings.get("q_group_size"))
        return f"AWQ ({BITS} bits, groups of {size})"

    def holds(self, found: Mapping[str, TensorHeader]) -> bool:
        """Whether there are codes with zero points and scales."""
        return set(self.parts) <= set(found)

    def unpack(self, found: Mapping[str, Tensor]) -> Tensor:
        """Scale · (code - zero point), of each group."""
        scales = found["scales"].float()
        codes, zeros = (_in_order(found[name]) for name in ("qweight", "qzeros"))
        if codes.shape[1] != scales.shape[1] or zeros.shape != scales.shape:
            raise ValueError(
                f"codes {list(codes.shape)}, zero points {list(zeros.shape)} and scales "
                f"{list(scales.shape)} do not fit together"
            )
        columns = len(codes)
        zero = in_groups(zeros.T, columns)
        return torch.mul(codes.T - zero, in_groups(scales.T, columns))


def _in_order(words: Tensor) -> Tensor:
    """Int32 [n, out / 8] -> int16 [n, out]."""
    found = fields(words, BITS).view(len(words), -1, len(ORDER))
    ordered = torch.empty_like(found)
    ordered[..., list(ORDER)] = found
    return ordered.flatten(1)


PACKING = Awq
