"""Products with a weight of which whole groups of inputs are dropped."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.weak import WeakTensorKeyDictionary

from spqlm.formats import StoredWeight
from spqlm.kernels.triton.dequantize import dequantize_groups
from spqlm.kernels.triton.group_sparse import kept_groups_times_inputs
from spqlm.kernels.triton.launching import Launch, Slot
from spqlm.kernels.triton.matrix import DTYPES, in_pairs, in_words, launchable
from spqlm.kernels.triton.ready import FewRows
from spqlm.kernels.weights import consistent
from spqlm.native import FLOATS
from spqlm.numerics.group_sparse import unpack_mask
from spqlm.numerics.identity import version

FEW_ROWS = 6
"""Up to here the codes are read as they are stored; beyond, the weight is written out."""

WIDTHS = (4, 8, 16, 32, 64)
"""Bytes of a group's codes that the kernels' tiles are made for."""

MOST_GROUPS = 2**15
"""In a row: their numbers are kept in 16 bits."""

_numbers = WeakTensorKeyDictionary()


def group_numbers(mask: Tensor, groups: int) -> Tensor:
    """The number in its row of each kept group, int16 [kept].

    Made when a mask is seen for the first time, and kept as long as the mask is: 2 bytes for a
    group, on the GPU only.

    Args:
        mask: uint8 [rows, ⌈groups / 8⌉].
        groups: in a row.
    """
    now = version(mask)
    known = _numbers.get(mask)
    if known is None or known[0] != now:
        numbers = unpack_mask(mask.detach(), groups).nonzero()[:, 1].to(torch.int16)
        _numbers[mask] = known = now, numbers
    return known[1]


class Stored(NamedTuple):
    """A weight of which only some groups are stored, and its bias.

    Attributes:
        codes: [kept, width], int8 or two 4-bit codes to a byte.
        scale: [kept].
        zero: [kept] or None.
        mask: uint8 [rows, ⌈groups / 8⌉].
        offsets: int32 [rows + 1].
        bias: [rows] or None.
        packed: whether a stored element is two codes.
        columns: inputs.
        groups: in a row.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    mask: Tensor
    offsets: Tensor
    bias: Tensor | None
    packed: bool
    columns: int
    groups: int


def stored_of(weight: StoredWeight, bias: Tensor | None) -> Stored | None:
    """How the kernels see a weight, or None if there is none for it."""
    layout = weight.layout()
    if layout is None or not consistent(layout, bias):
        return None
    kind, codes, scale, columns, groups, _, zero, mask, offsets = layout
    if scale is None or mask is None or offsets is None:
        return None
    if codes.shape[1] not in WIDTHS or not codes.numel() or groups >= MOST_GROUPS:
        return None
    packed = kind == "sparse_int4"
    return Stored(codes, scale, zero, mask, offsets, bias, packed, columns, groups)


def sparse_product(x: Tensor, weight: StoredWeight, bias: Tensor | None) -> Tensor | None:
    """Inputs times the weight, transposed, plus bias; None where there is no kernel for it.

    Args:
        x: [..., columns], in any layout.
        weight: [rows, columns] of which some groups are stored; whether its offsets count the bits
            of each row's mask is not looked at.
        bias: [rows] or None.

    Returns:
        [..., rows] in the dtype of x, not differentiable.
    """
    x = x.contiguous()
    stored = _multiplies(x, weight, bias)
    if stored is None:
        return None
    if x.numel() <= FEW_ROWS * stored.columns:
        return read_codes(x, stored)
    dense = dequantized(stored, x.dtype)
    return functional.linear(x, dense, None if bias is None else bias.to(x.dtype))


def ready(x: Tensor, weight: StoredWeight, bias: Tensor | None) -> FewRows | None:
    """The product with few rows of input such as x, to be called again and again.

    Args:
        x: [..., columns], without gaps.
        weight: [rows, columns] of which some groups are stored.
        bias: [rows] or None.

    Returns:
        a function of tensors with the shape, dtype and device of x; None for many rows of input,
        and where there is no kernel.
    """
    stored = _multiplies(x, weight, bias)
    if stored is None or x.numel() > FEW_ROWS * stored.columns:
        return None
    return _prepared(x, stored)


def _multiplies(x: Tensor, weight: StoredWeight, bias: Tensor | None) -> Stored | None:
    """The weight as kernels see it, where they multiply x, which is without gaps, by it."""
    stored = stored_of(weight, bias)
    if stored is None or x.dtype not in FLOATS or not x.numel():
        return None
    if x.ndim == 0 or x.shape[-1] != stored.columns:
        return None
    if not launchable(x, *stored[:5], bias):
        return None
    # For a prompt too: graphs of the tokens after it cannot make the numbers.
    if len(group_numbers(stored.mask, stored.groups)) != len(stored.codes):
        return None
    return stored


def restored(weight: StoredWeight, dtype: torch.dtype) -> Tensor | None:
    """The weight in a float dtype, not differentiable; None where there is no kernel for it."""
    stored = stored_of(weight, None)
    if stored is None or not launchable(*stored[:5]):
        return None
    return dequantized(stored, dtype)


def read_codes(x: Tensor, stored: Stored) -> Tensor:
    """Inputs [..., columns], at most FEW_ROWS, times a weight as it is stored, plus bias."""
    return _prepared(x, stored)(x)


def _prepared(x: Tensor, stored: Stored) -> FewRows:
    rows, count = len(stored.mask), x.numel() // stored.columns
    kept, width = stored.codes.shape
    numbers = group_numbers(stored.mask, stored.groups)
    launch = Launch(
        kept_groups_times_inputs,
        (rows * count,),
        (
            *(Slot.X, stored.codes, stored.scale, stored.zero, numbers),
            *(stored.offsets, stored.bias, Slot.Y),
            *(count, rows, kept, stored.columns // 2),
        ),
        {0: in_pairs, 1: in_words},
        PACKED=stored.packed,
        DTYPE=DTYPES[x.dtype],
        WORDS=width // 4,
        GROUPS=32,
        num_warps=1,
    )
    return FewRows(rows, x.dtype, [launch])


def dequantized(stored: Stored, dtype: torch.dtype) -> Tensor:
    """The weight [rows, columns], with zeros where groups are dropped."""
    width, (rows, mask_width) = stored.codes.shape[1], stored.mask.shape
    dense = stored.codes.new_empty(rows, stored.columns, dtype=dtype)
    with torch.cuda.device_of(dense):
        dequantize_groups[(rows,)](
            *stored[:5],
            dense,
            stored.columns,
            mask_width,
            PACKED=stored.packed,
            WIDTH=width,
            GROUPS=2048 // width,
        )
    return dense
