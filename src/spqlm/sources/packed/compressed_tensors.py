"""Checkpoints of compressed-tensors, which llm-compressor writes: integers and 8-bit floats.

A linear layer has `weight_scale`, [] or [1] of the whole weight, [out, 1] of rows, [out, groups] of
groups, or one of each block; `weight_zero_point` of the same shape where it is not symmetric; and
its codes: `weight`, in int8 or float8, or, in the format `pack-quantized`, `weight_packed`, int32
[out, in · bits / 32] of codes plus 2^(bits - 1), lowest bits first, with `weight_shape` beside it
and zero points packed along the outputs. `weight_g_idx` is the group of each input.
"""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from spqlm.checkpoint.headers import FLOATS, TensorHeader
from spqlm.sources.packed.base import WORD_BITS, Packed, fields, in_groups

PACKED = "pack-quantized"
FORMATS = (PACKED, "int-quantized", "float-quantized", "naive-quantized")
MIXED = "mixed-precision"
BITS = (4, 8)


class CompressedTensors(Packed):
    """See the module."""

    parts: ClassVar[tuple[str, ...]] = (
        *("weight", "weight_packed", "weight_scale", "weight_zero_point"),
        *("weight_g_idx", "weight_shape"),
    )
    left_out: ClassVar[tuple[str, ...]] = (
        *("input_scale", "input_zero_point", "output_scale", "output_zero_point"),
        *("k_scale", "v_scale", "q_scale"),
    )

    def _schemes(self) -> Iterator[Mapping[str, Any]]:
        groups = self.settings.get("config_groups")
        for group in groups.values() if isinstance(groups, dict) else ():
            if isinstance(group, dict):
                yield group

    def _weights(self) -> Iterator[Mapping[str, Any]]:
        return (s["weights"] for s in self._schemes() if isinstance(s.get("weights"), dict))

    def _formats(self) -> list[str]:
        stated = self.settings.get("format")
        found = [group.get("format") or stated for group in self._schemes()]
        return [str(form) for form in ([stated] if stated != MIXED else found)]

    def refusal(self) -> str | None:
        """Sparse weights, rotations, and packings of other types."""
        unknown = [form for form in self._formats() if form not in FORMATS]
        if unknown:
            return f"the format {unknown[0]!r}"
        sparsity = self.settings.get("sparsity_config") or {}
        if sparsity.get("format", "dense") != "dense":
            return f"the sparse format {sparsity['format']!r}"
        if self.settings.get("transform_config"):
            return "a model whose activations are rotated"
        bits = [weights.get("num_bits") for weights in self._weights()]
        others = [count for count in bits if count not in BITS]
        return f"a width of {others[0]} bits" if others else None

    @property
    def spoken(self) -> str:
        """With what its groups are."""
        kinds = dict.fromkeys(map(_kind, self._weights()))
        return f"compressed-tensors ({', '.join(kinds)})"

    def holds(self, found: Mapping[str, TensorHeader]) -> bool:
        """Whether there are codes with scales."""
        if "weight_scale" not in found:
            return False
        weight = found.get("weight")
        return "weight_packed" in found or (weight is not None and weight.dtype not in FLOATS)

    def unpack(self, found: Mapping[str, Tensor]) -> Tensor:
        """Scale · (code - zero point)."""
        scale, zero = found["weight_scale"].float(), found.get("weight_zero_point")
        if "weight_packed" in found:
            codes, zero = _unpacked(found, scale)
        else:
            codes = found["weight"].float()
        rows, columns = codes.shape
        index = found.get("weight_g_idx")
        if index is not None and int(index.min()) < 0:
            index = None  # not made use of
        values = codes if zero is None else codes - self._spread(zero.float(), rows, columns, index)
        return values * self._spread(scale, rows, columns, index)

    def _spread(self, values: Tensor, rows: int, columns: int, index: Tensor | None) -> Tensor:
        """What belongs to the whole, rows, groups or blocks, so that it broadcasts to each."""
        if values.numel() == 1:
            return values.flatten()
        if values.ndim == 1:
            values = values[:, None]
        for weights in self._weights():
            height, width = weights.get("block_structure") or (rows, columns)
            if values.shape == (-(-rows // height), -(-columns // width)):
                wide = values.repeat_interleave(height, 0)[:rows]
                return wide.repeat_interleave(width, 1)[:, :columns]
        if len(values) in (1, rows):
            return values if values.shape[1] == 1 else in_groups(values, columns, index)
        raise ValueError(f"scales {list(values.shape)} do not fit codes of {[rows, columns]}")


def _unpacked(found: Mapping[str, Tensor], scale: Tensor) -> tuple[Tensor, Tensor | None]:
    """Codes of a packed weight, float32 [out, in], and its zero points [out, groups]."""
    words = found["weight_packed"]
    rows, columns = found["weight_shape"].tolist()
    bits = next((b for b in BITS if -(-columns * b // WORD_BITS) == words.shape[1]), None)
    if bits is None or len(words) != rows:
        raise ValueError(f"packed codes {list(words.shape)} are no weight of {[rows, columns]}")
    offset = 2 ** (bits - 1)
    codes = (fields(words, bits)[:, :columns] - offset).float()
    zero = found.get("weight_zero_point")
    if zero is not None and zero.dtype == torch.int32:
        zero = fields(zero.T.contiguous(), bits).T[:rows] - offset
    return codes, zero


def _kind(weights: Mapping[str, Any]) -> str:
    size = weights.get("group_size")
    grouped = f" in groups of {size}" if isinstance(size, int) and size > 0 else ""
    return f"{weights.get('type', 'int')}{weights['num_bits']}{grouped}"


PACKING = CompressedTensors
