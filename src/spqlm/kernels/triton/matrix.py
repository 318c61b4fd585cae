"""A stored weight as the kernels see it."""

from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from spqlm.formats import StoredWeight
from spqlm.native.weights import consistent

DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
"""What Triton calls the dtypes of inputs."""

PACKED_GROUPS = (16, 32, 64)
"""Bytes of packed codes that share a scale: the kernels' tiles are made for these."""


class Matrix(NamedTuple):
    """A weight and where its parts are.

    Attributes:
        weight: [rows, width]: floats, int8 codes, or two 4-bit codes to a byte.
        scale: of row i at i * scale_row, and there one for each group; or None.
        bias: [rows] or None.
        packed: whether a stored element is two codes.
        group: stored elements that share a scale, or None where all of a row do.
        scale_row: see scale.
    """

    weight: Tensor
    scale: Tensor | None
    bias: Tensor | None
    packed: bool
    group: int | None
    scale_row: int

    @property
    def rows(self) -> int:
        """Outputs."""
        return self.weight.shape[0]

    @property
    def width(self) -> int:
        """Stored elements of a row."""
        return self.weight.shape[1]

    @property
    def columns(self) -> int:
        """Inputs."""
        return 2 * self.width if self.packed else self.width

    @property
    def words(self) -> Tensor | None:
        """The codes as int32 [rows, words of a row]; None where rows are not whole words."""
        coded = self.weight.dtype in (torch.int8, torch.uint8)
        return in_words(self.weight) if coded and self.width % 4 == 0 else None


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
    packed = layout.kind == "int4"
    group = layout.codes.shape[1] // layout.groups if packed else None
    if packed and (group not in PACKED_GROUPS or layout.codes.shape[1] % layout.groups):
        return None
    return Matrix(layout.codes, layout.scale, bias, packed, group, layout.groups)
