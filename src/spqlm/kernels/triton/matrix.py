"""A stored weight as the kernels see it."""

from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from spqlm.formats import StoredWeight
from spqlm.kernels.weights import GROUPED, NONLINEAR, consistent

DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
"""What Triton calls the dtypes of inputs."""

GROUPS = (32, 64, 128)
"""Inputs that share a scale: the kernels' tiles are made for these, and for all of a row."""

WHOLE_WORDS = 32
"""What divides the inputs of a row whose planes begin at whole words."""


class Matrix(NamedTuple):
    """A weight and where its parts are.

    Attributes:
        weight: rows of floats, of int8 codes, or of bytes of codes in planes.
        scale: of row i at i * scale_row, and there one for each group; or None.
        bias: [rows] or None.
        columns: inputs.
        bits: of a code in planes, 2 to 7; None where an element is a weight.
        nonlinear: whether codes in planes are for levels that are denser near zero.
        group: inputs that share a scale; None where all of a row do.
        scale_row: see scale.
    """

    weight: Tensor
    scale: Tensor | None
    bias: Tensor | None
    columns: int
    bits: int | None
    nonlinear: bool
    group: int | None
    scale_row: int

    @property
    def rows(self) -> int:
        """Outputs."""
        return self.weight.shape[0]

    @property
    def width(self) -> int:
        """Units of a row: inputs, or pairs of them where codes are in planes."""
        return self.columns if self.bits is None else self.columns // 2

    @property
    def unit_group(self) -> int | None:
        """Units that share a scale; None where all of a row do."""
        return None if self.group is None else self.group // 2

    @property
    def whole_words(self) -> bool:
        """Whether these are codes, and rows and their planes are whole words of 32 bits."""
        coded = self.weight.dtype in (torch.int8, torch.uint8)
        return coded and self.columns % (4 if self.bits is None else WHOLE_WORDS) == 0


def in_words(codes: Tensor) -> Tensor:
    """Bytes of codes as int32, [..., 4 n] -> [..., n]."""
    return (codes.clone() if codes.storage_offset() % 4 else codes).view(torch.int32)


def in_pairs(x: Tensor) -> Tensor:
    """Inputs [..., even] in twos, each two an integer of twice their size: [..., even / 2]."""
    x = x.clone() if x.storage_offset() % 2 else x
    return x.view(torch.int64 if x.dtype == torch.float32 else torch.int32)


def cdiv(size: int, parts: int) -> int:
    """Rounded up. Triton's own takes several microseconds, half as long as a launch."""
    return -(-size // parts)


def launchable(*tensors: Tensor | None) -> bool:
    """Whether kernels may be given these: ordinary tensors on one device, without gaps."""
    given = [tensor for tensor in tensors if tensor is not None]
    return all(
        type(tensor) in (Tensor, torch.nn.Parameter)
        and tensor.is_contiguous()
        and tensor.device == given[0].device
        for tensor in given
    )


def matrix_of(weight: StoredWeight, bias: Tensor | None) -> Matrix | None:
    """How the kernels see a weight, or None if there is none for it.

    Args:
        weight: [out, in], of which every element is stored.
        bias: [out] or None.
    """
    layout = weight.layout()
    if layout is None or layout.mask is not None or not consistent(layout, bias):
        return None
    if not layout.codes.numel():
        return None
    bits, nonlinear = GROUPED.get(layout.kind), layout.kind in NONLINEAR
    group = None
    if bits is not None:
        if layout.columns % WHOLE_WORDS:
            return None
        group = None if layout.groups == 1 else layout.columns // layout.groups
        if group is not None and group not in GROUPS:
            return None
    parts = (layout.codes, layout.scale, bias, layout.columns)
    return Matrix(*parts, bits, nonlinear, group, layout.groups)
