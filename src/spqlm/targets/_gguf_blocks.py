"""Stored weights as ggml's blocks, number for number.

Grouped integers become Q4_0, Q5_0 or Q8_0, in blocks of 32, and levels that are not evenly spaced
Q8_0; formats that are ggml's own become the type of their name. A block is floats of 16 bits,
integers and codes, each in an order of its own.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from spqlm.formats import Format, StoredWeight
from spqlm.formats._blocks import BlockWeight, InBlocks
from spqlm.formats._grouped import Grouped
from spqlm.targets._integers import Integers, integers, scheme, widened

BLOCK = 32
"""Columns of a block of integers."""

TYPES = {2: "Q4_0", 3: "Q4_0", 4: "Q4_0", 5: "Q5_0", 6: "Q8_0", 7: "Q8_0", 8: "Q8_0"}
"""The smallest type that holds every code of so many bits."""

BYTES = {
    "Q4_0": 18,
    "Q4_1": 20,
    "Q5_0": 22,
    "Q5_1": 24,
    "Q8_0": 34,
    "IQ4_NL": 18,
    "IQ4_XS": 136,
    "Q2_K": 84,
    "Q3_K": 110,
    "Q4_K": 144,
    "Q5_K": 176,
    "Q6_K": 210,
}
"""Of a block."""


def is_type(form: Format) -> bool:
    """Whether a format is one of ggml's types itself."""
    return form.name in LAYOUTS


def type_of(form: Format, columns: int) -> str | None:
    """The type of a weight in a format; None where it becomes floats."""
    if is_type(form):
        return form.name.upper()
    found = scheme(form, columns)
    return None if found is None else TYPES[found.bits]


def stored_bytes(form: Format, rows: int, columns: int, float_bytes: int) -> int:
    """Bytes of a weight there; as they are where it is floats."""
    if isinstance(form, InBlocks) and is_type(form):
        return rows * columns // form.grid.block * BYTES[form.name.upper()]
    found = scheme(form, columns)
    if found is None:
        return form.stored_bytes(rows, columns, float_bytes)
    return rows * columns // BLOCK * BYTES[TYPES[found.bits]]


def wasteful(form: Format) -> str | None:
    """Why a format is never worth its bytes there; None where it may be."""
    if is_type(form):
        return None
    if not isinstance(form, Grouped) or (form.bits in (4, 5) and form.group_size == BLOCK):
        return widened(form)
    kind = TYPES[form.bits]
    return f"it takes the bytes of {kind} there, whose groups of {BLOCK} lose less"


def exact(weight: StoredWeight) -> bool:
    """Whether float16 holds all scales and shifts of a weight that has blocks."""
    found = integers(weight)
    floats: Sequence[Tensor] = () if found is None else (found.scale,)
    if isinstance(weight, BlockWeight):
        plain = weight.plain
        floats = [part for part in (plain.scale, plain.shift) if part is not None]
    return all(bool((part.to(torch.float16).float() == part.float()).all()) for part in floats)


def encoded(weight: StoredWeight) -> tuple[str, Tensor] | None:
    """The type and the blocks, uint8 [rows, bytes of a row]; None of a weight that has none.

    Args:
        weight: [rows, columns]; a block divides the columns that share a scale, and float16 holds
            the floats.
    """
    if isinstance(weight, BlockWeight) and is_type(weight.format):
        fields = _fields(weight)
        parts = LAYOUTS[weight.format.name](fields)
        return weight.format.name.upper(), torch.cat(parts, dim=2).flatten(1)
    found = integers(weight)
    return None if found is None else blocks(found)


def blocks(weight: Integers) -> tuple[str, Tensor]:
    """The same of integers."""
    name = TYPES[weight.bits]
    codes = weight.codes.unflatten(1, (-1, BLOCK))
    parts = [_halves(weight.regrouped(BLOCK).scale)]
    if name == "Q8_0":
        parts.append(codes.contiguous().view(torch.uint8))
    else:
        raised = codes + (8 if name == "Q4_0" else 16)
        if name == "Q5_0":
            parts.append(_laid(raised >> 4, 8, 1))
        parts.append(_laid(raised & 15, 2, 16))
    return name, torch.cat(parts, dim=2).flatten(1)


class _Fields(NamedTuple):
    """Parts of the blocks of a weight.

    Attributes:
        codes: int16 [rows, blocks, columns of a block], from 0 on.
        scale: bytes of float16, [rows, blocks, 2].
        shift: the same.
        minus: the same of the negative shift, which types with integers have.
        multiples: int16 [rows, blocks, groups of a block].
        shift_multiples: the same.
    """

    codes: Tensor
    scale: Tensor
    shift: Tensor
    minus: Tensor
    multiples: Tensor
    shift_multiples: Tensor


def _fields(weight: BlockWeight) -> _Fields:
    found = weight.unpacked
    count = found.scale.shape[1]
    nothing = found.codes[:, :0, None]
    shift = found.scale[:, :0] if found.shift is None else found.shift

    def split(part: Tensor | None) -> Tensor:
        return nothing if part is None else part.unflatten(1, (count, -1))

    return _Fields(
        split(found.codes),
        _halves(found.scale),
        _halves(shift),
        _halves(-shift),
        split(found.multiples),
        split(found.shift_multiples),
    )


def _halves(floats: Tensor) -> Tensor:
    """[rows, blocks] -> uint8 [rows, blocks, 2]."""
    return floats.to(torch.float16).contiguous()[..., None].view(torch.uint8)


def _laid(values: Tensor, count: int, run: int) -> Tensor:
    """Small integers side by side in bytes.

    Args:
        values: [..., n] below 2^(8 / count).
        count: of them in a byte, lowest bits first.
        run: bytes whose first values come one after the other before their second ones do.

    Returns:
        uint8 [..., n / count].
    """
    shifts = 8 // count * torch.arange(count, dtype=torch.uint8, device=values.device)
    parts = values.to(torch.uint8).unflatten(-1, (-1, count, run))
    return (parts << shifts[:, None]).sum(-2, dtype=torch.uint8).flatten(-2)


def _six_bits(fields: _Fields) -> Tensor:
    """Eight multiples and eight of the shifts in twelve bytes: uint8 [rows, blocks, 12]."""
    (low, high), (shift_low, shift_high) = (
        part.split(4, dim=2) for part in (fields.multiples, fields.shift_multiples)
    )
    parts = [low | (high >> 4) << 6, shift_low | (shift_high >> 4) << 6]
    parts.append((high & 15) | (shift_high & 15) << 4)
    return torch.cat(parts, dim=2).to(torch.uint8)


def _raised(fields: _Fields) -> Tensor:
    """Multiples of either sign, plus half of the range of six bits."""
    return fields.multiples + 32


LAYOUTS: dict[str, Callable[[_Fields], list[Tensor]]] = {
    "q4_1": lambda f: [f.scale, f.shift, _laid(f.codes, 2, 16)],
    "q5_1": lambda f: [f.scale, f.shift, _laid(f.codes >> 4, 8, 1), _laid(f.codes & 15, 2, 16)],
    "q8_0": lambda f: [f.scale, (f.codes - 128).to(torch.int8).view(torch.uint8)],
    "iq4_nl": lambda f: [f.scale, _laid(f.codes, 2, 16)],
    "iq4_xs": lambda f: [
        f.scale,
        _laid(_raised(f) >> 4, 4, 1),
        _laid(_raised(f) & 15, 2, 1),
        _laid(f.codes, 2, 16),
    ],
    "q2_k": lambda f: [
        (f.multiples | f.shift_multiples << 4).to(torch.uint8),
        _laid(f.codes, 4, 32),
        f.scale,
        f.minus,
    ],
    "q3_k": lambda f: [
        _laid(f.codes >> 2, 8, 32),
        _laid(f.codes & 3, 4, 32),
        _laid(_raised(f) & 15, 2, 8),
        _laid(_raised(f) >> 4, 4, 4),
        f.scale,
    ],
    "q4_k": lambda f: [f.scale, f.minus, _six_bits(f), _laid(f.codes, 2, 32)],
    "q5_k": lambda f: [
        f.scale,
        f.minus,
        _six_bits(f),
        _laid(f.codes >> 4, 8, 32),
        _laid(f.codes & 15, 2, 32),
    ],
    "q6_k": lambda f: [
        _laid(f.codes & 15, 2, 64),
        _laid(f.codes >> 4, 4, 32),
        f.multiples.to(torch.int8).view(torch.uint8),
        f.scale,
    ],
}
"""What follows what in a block."""
