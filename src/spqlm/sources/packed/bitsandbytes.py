"""Checkpoints of bitsandbytes: 4-bit codes of a table (arXiv 2305.14314), and int8 (2208.07339).

In 4 bits a linear layer has `weight`, two codes in a byte, the first in the high bits, over all
elements in their order; `weight.quant_map`, the 16 values; `weight.absmax`, a scale for each block,
which in double quantisation is itself codes of `weight.nested_quant_map` with scales
`weight.nested_absmax`; and `weight.quant_state.bitsandbytes__nf4` (or fp4), JSON with the shape and
the sizes of blocks. In 8 bits it has `weight`, int8 [out, in], and `SCB`, the largest magnitude of
each row.
"""

import json
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from spqlm.checkpoint.headers import TensorHeader
from spqlm.sources.packed.base import Packed

STATES = tuple(f"weight.quant_state.bitsandbytes__{kind}" for kind in ("nf4", "fp4"))
LARGEST_INT8 = 127


class Bitsandbytes(Packed):
    """See the module."""

    parts: ClassVar[tuple[str, ...]] = (
        *("weight", "SCB", "weight_format", *STATES),
        *("weight.absmax", "weight.quant_map"),
        *("weight.nested_absmax", "weight.nested_quant_map"),
    )

    @property
    def _in_8_bits(self) -> bool:
        return bool(self.settings.get("load_in_8bit") or self.settings.get("_load_in_8bit"))

    @property
    def spoken(self) -> str:
        """With the kind of codes."""
        if self._in_8_bits:
            return "bitsandbytes int8"
        twice = ", double quantisation" if self.settings.get("bnb_4bit_use_double_quant") else ""
        return f"bitsandbytes {self.settings.get('bnb_4bit_quant_type', 'fp4')}{twice}"

    def holds(self, found: Mapping[str, TensorHeader]) -> bool:
        """Whether there are codes with scales."""
        return "weight" in found and ("SCB" in found or "weight.absmax" in found)

    def unpack(self, found: Mapping[str, Tensor]) -> Tensor:
        """Code times scale, by row or by block."""
        if "SCB" in found:
            codes, largest = found["weight"], found["SCB"].float()
            if codes.ndim != 2 or largest.shape != codes.shape[:1]:
                raise ValueError(f"{len(largest)} scales do not fit codes of {list(codes.shape)}")
            return codes * (largest / LARGEST_INT8)[:, None]
        state = _state(found)
        absmax = found["weight.absmax"]
        if "weight.nested_absmax" in found:
            inner = found["weight.nested_quant_map"].float()[absmax.long()]
            absmax = _scaled(inner, found["weight.nested_absmax"], state["nested_blocksize"])
            absmax = absmax + state["nested_offset"]
        shape = torch.Size(state["shape"])
        bytes_ = found["weight"].contiguous().view(torch.uint8).flatten()
        codes = torch.stack([bytes_ >> 4, bytes_ & 15], -1).flatten()[: shape.numel()]
        values = found["weight.quant_map"].float()[codes.int()]
        return _scaled(values, absmax, state["blocksize"]).view(shape)


def _state(found: Mapping[str, Tensor]) -> dict[str, Any]:
    name = next((name for name in STATES if name in found), None)
    if name is None:
        raise ValueError("nothing states the shape of the weight")
    state: dict[str, Any] = json.loads(bytes(found[name].tolist()))
    return state


def _scaled(values: Tensor, scales: Tensor, size: int) -> Tensor:
    """Values [n] times the scale of their block, each but the last of `size` values."""
    if len(scales) != -(-len(values) // size):
        raise ValueError(f"{len(scales)} scales are none of {len(values)} values by {size}")
    return values * scales.float().repeat_interleave(size)[: len(values)]


PACKING = Bitsandbytes
