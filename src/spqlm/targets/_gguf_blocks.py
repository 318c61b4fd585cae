"""Integers as ggml's blocks of 32: Q4_0, Q5_0 and Q8_0, number for number.

A block is a float16 scale and then the codes. In Q4_0 and Q5_0 codes are stored plus half of their
range; byte i holds the low four bits of columns i and i + 16, and Q5_0 has the fifth bits in a
little-endian word of 32 before them.
"""

import torch
from torch import Tensor

from spqlm.formats import Format
from spqlm.targets._integers import Integers, code_bits

BLOCK = 32
"""Columns of a block."""

TYPES = {2: "Q4_0", 3: "Q4_0", 4: "Q4_0", 5: "Q5_0", 6: "Q8_0", 7: "Q8_0", 8: "Q8_0"}
"""The smallest type that holds every code of so many bits."""

BYTES = {"Q4_0": 18, "Q5_0": 22, "Q8_0": 34}
"""Of a block."""


def stored_bytes(form: Format, rows: int, columns: int, float_bytes: int) -> int:
    """Bytes of a weight there; as they are where it is no integers."""
    bits = code_bits(form)
    if bits is None:
        return form.stored_bytes(rows, columns, float_bytes)
    return rows * columns // BLOCK * BYTES[TYPES[bits]]


def exact(scale: Tensor) -> bool:
    """Whether float16 holds all scales."""
    return bool((scale.to(torch.float16).float() == scale.float()).all())


def blocks(weight: Integers) -> tuple[str, Tensor]:
    """Encode a weight.

    Args:
        weight: [rows, columns]; BLOCK divides the columns that share a scale, and float16 holds
            the scales.

    Returns:
        the type, and uint8 [rows, bytes of a row].
    """
    name = TYPES[weight.bits]
    codes = weight.codes.unflatten(1, (-1, BLOCK))
    scale = weight.regrouped(BLOCK).scale.to(torch.float16).contiguous()
    parts = [scale[..., None].view(torch.uint8)]
    if name == "Q8_0":
        parts.append(codes.contiguous().view(torch.uint8))
    else:
        offset = 8 if name == "Q4_0" else 16
        raised = (codes + offset).to(torch.uint8)
        if name == "Q5_0":
            parts.append(_bits(raised >> 4))
        low = raised & 15
        parts.append(low[..., :16] | (low[..., 16:] << 4))
    return name, torch.cat(parts, dim=2).flatten(1)


def _bits(values: Tensor) -> Tensor:
    """Zeros and ones uint8 [..., 32] -> uint8 [..., 4], bit i of byte j from column 8 j + i."""
    shifts = torch.arange(8, dtype=torch.uint8, device=values.device)
    return (values.unflatten(-1, (4, 8)) << shifts).sum(-1, dtype=torch.uint8)
