"""GPTQ checkpoints as AutoGPTQ and GPTQModel write them (arXiv 2210.17323).

A linear layer has `qweight`, int32 [in · bits / 32, out], with the codes of consecutive inputs in a
word; `qzeros`, int32 [groups, out · bits / 32]; `scales`, [groups, out]; and `g_idx`, int32 [in],
the group of each input, out of order where columns were rounded in the order of their activations.
The first version of the format, `gptq`, stores each zero point less one; the second, `gptq_v2`, as
it is.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from spqlm.checkpoint.headers import TensorHeader
from spqlm.sources.packed.base import WORD_BITS, Packed, fields, in_groups

BITS = (2, 4, 8)
FORMATS = ("gptq", "gptq_v2")


class Gptq(Packed):
    """See the module."""

    parts: ClassVar[tuple[str, ...]] = ("qweight", "qzeros", "scales", "g_idx")

    @property
    def _format(self) -> str:
        return str(self.settings.get("checkpoint_format") or self.settings.get("format") or "gptq")

    def refusal(self) -> str | None:
        """Other bits, whose codes lie across words, and formats made for one kernel."""
        if self.settings.get("bits") not in BITS:
            return f"a width of {self.settings.get('bits')} bits"
        if self._format not in FORMATS:
            return f"the format {self._format!r}"
        return None

    @property
    def spoken(self) -> str:
        """With bits and groups."""
        size = self.settings.get("group_size", -1)
        grouped = f", groups of {size}" if isinstance(size, int) and size > 0 else ""
        ordered = ", by activation order" if self.settings.get("desc_act") else ""
        return f"GPTQ ({self.settings['bits']} bits{grouped}{ordered})"

    def holds(self, found: Mapping[str, TensorHeader]) -> bool:
        """Whether there are codes with zero points and scales."""
        return {"qweight", "qzeros", "scales"} <= set(found)

    def unpack(self, found: Mapping[str, Tensor]) -> Tensor:
        """Scale · (code - zero point), of each group."""
        scales, qzeros, qweight = found["scales"].float(), found["qzeros"], found["qweight"]
        # A module may have other bits than most.
        bits = WORD_BITS * qzeros.shape[1] // scales.shape[1]
        if bits not in BITS or qweight.shape[1] != scales.shape[1]:
            raise ValueError(f"codes for {scales.shape[1]} outputs in {bits} bits do not fit")
        if self._format == "gptq":
            # As it was subtracted: of a whole word at once.
            qzeros = qzeros + int(sum(1 << shift for shift in range(0, WORD_BITS, bits)))
        zeros = fields(qzeros, bits)
        codes = fields(qweight.T.contiguous(), bits)
        columns = codes.shape[1]
        index = found.get("g_idx")
        zero = in_groups(zeros.T, columns, index)
        return torch.mul(codes - zero, in_groups(scales.T, columns, index))


PACKING = Gptq
