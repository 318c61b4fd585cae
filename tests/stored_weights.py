"""Stored weights of given tensors, and what they stand for, for the tests of whatever takes one."""

from functools import cache

import torch
from torch import Tensor

from spqlm.formats import StoredWeight, format_class
from spqlm.formats.dense import Dense, DenseWeight
from spqlm.formats.int4 import Int4
from spqlm.formats.int8 import Int8
from spqlm.numerics import packing
from spqlm.numerics.nonlinear import LEVELS


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_codes(rows: int, columns: int, bits: int, seed: int = 0) -> Tensor:
    """int8 [rows, columns], all codes that there are of so many bits."""
    low, high = (-127, 128) if bits == 8 else (-(2 ** (bits - 1)), 2 ** (bits - 1))
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, (rows, columns), generator=generator, dtype=torch.int8)


def dense(weight: Tensor) -> DenseWeight:
    """Floats [rows, columns]."""
    return DenseWeight(Dense(), weight)


def int8(codes: Tensor, scale: Tensor) -> StoredWeight:
    """int8 [rows, columns] times [rows], or times [1] for all."""
    form = Int8(granularity="per_channel" if len(scale) == len(codes) else "per_tensor")
    return form.hold({"codes": codes, "scale": scale}, codes.shape[1])


def int4(codes: Tensor, scale: Tensor) -> StoredWeight:
    """Codes int8 [rows, columns] in [-8, 7] that are not packed yet, times [rows, groups]."""
    return packed_int4(Int4().pack(codes), scale)


def grouped(codes: Tensor, scale: Tensor, kind: str) -> StoredWeight:
    """Codes int8 [rows, columns] of a format's bits, not packed yet, times [rows, groups]."""
    columns = codes.shape[1]
    form = format_class(kind)(group_size=columns // scale.shape[1])
    return form.hold({"codes": packing.pack(codes, form.bits), "scale": scale}, columns)


def packed_int4(packed: Tensor, scale: Tensor) -> StoredWeight:
    """uint8 [rows, columns / 2] times [rows, groups]."""
    columns = 2 * packed.shape[1]
    form = Int4(group_size=columns // scale.shape[1])
    return form.hold({"codes": packed, "scale": scale}, columns)


def definition(weight: StoredWeight) -> Tensor:
    """What it stands for, float64 [rows, columns], from its tensors alone."""
    tensors, name = weight.tensors(), weight.format.name
    if name == "low_rank":
        return definition(weight.left) @ definition(weight.right)
    if name == "dense":
        return tensors["weight"].double()
    codes, scale = tensors["codes"], tensors["scale"].double()
    if name in ("int8", "w8a8"):
        return codes.double() * scale[:, None]
    bits = weight.format.bits
    values = codes.double() if bits == 8 else _planes(codes, bits)
    if name.startswith("nl"):
        values = torch.tensor(LEVELS[bits]).double()[values.long() + 2 ** (bits - 1)]
    if name.startswith("nl") and weight.format.scales == "int8":
        mantissa, exponent = torch.frexp(scale * tensors["multiples"].double() / 127)
        scale = torch.ldexp((mantissa * 256).round() / 256, exponent)
    if name != "group_sparse":
        return values * scale.repeat_interleave(weight.format.group_size, 1)
    values = values * scale[:, None]
    if weight.zero is not None:
        values = values + weight.zero.double()[:, None]
    whole = torch.zeros(weight.shape, dtype=torch.float64)
    groups = whole.unflatten(1, (-1, weight.format.group_size))
    stored = iter(values)
    for row, mask in enumerate(weight.mask.tolist()):
        for group in range(groups.shape[1]):
            if mask[group // 8] >> (group % 8) & 1:
                groups[row, group] = next(stored)
    return whole


def _planes(packed: Tensor, bits: int) -> Tensor:
    """Codes in planes of four, two and one bits, as `spqlm.numerics.packing` describes them."""
    columns = packed.shape[1] * 8 // bits
    values, start, shift = torch.zeros(len(packed), columns, dtype=torch.int32), 0, 0
    for width in (4, 2, 1):
        if bits & width:
            byte, bit = _places(columns, width).T
            values += (packed[:, start + byte].int() >> bit & 2**width - 1) << shift
            start, shift = start + columns * width // 8, shift + width
    return values.double() - 2 ** (bits - 1)


@cache
def _places(columns: int, width: int) -> Tensor:
    """Byte of a plane of so many bits, and bit in it, of every column: int64 [columns, 2]."""
    places = []
    for column in range(columns):
        block, within = column // 128 * 128, column % 128
        here, number, odd = min(128, columns - block), within // 2, within % 2
        if width == 4:
            byte, bit = number, 4 * odd
        elif width == 2:
            byte, bit = number % (here // 4), 4 * odd + 2 * (number // (here // 4))
        else:
            byte, bit = odd * here // 16 + number // 8, number % 8
        places.append((block * width // 8 + byte, bit))
    return torch.tensor(places)
