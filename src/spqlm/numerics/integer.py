"""Symmetric linear quantisation to signed integers.

w ≈ scale · code without a zero point. Eight bits: codes in [-127, 127], a scale per row or tensor.
Fewer: codes in [-2^(bits-1), 2^(bits-1) - 1], one scale per group of consecutive inputs, of either
sign, so that the odd level serves whichever end of the group is longer. Scales are rounded
up to eight significant bits inside the range of float16, so that one scale means exactly the same
number in float16, bfloat16 and float32: a model can be cast, saved and exported without moving
its weights.
"""

from functools import cache

import torch
from torch import Tensor

SMALLEST_SCALE = 2.0**-24
LARGEST_SCALE = 65280.0
SIGNIFICANT_BITS = 8
# Of the 24 significant bits of float32.
DROPPED_BITS = 24 - SIGNIFICANT_BITS
DROPPED = 2**DROPPED_BITS - 1
# Entries of a weight that are float32 at one time.
AT_ONCE = 1 << 22
# Shares of the largest magnitude that a group's scale is tried at.
SHRINKS = tuple(1.0 - 0.025 * step for step in range(17))


def largest_code(bits: int) -> int:
    """Q = 2^(bits-1) - 1."""
    return 2 ** (bits - 1) - 1


def code_range(bits: int) -> tuple[int, int]:
    """The least and the largest code: symmetric for eight bits, all of two's complement below."""
    largest = largest_code(bits)
    return (-largest if bits == 8 else -largest - 1), largest


def wide(dtype: torch.dtype) -> torch.dtype:
    """What to sum numbers of a float dtype in: float32 at least."""
    return torch.promote_types(torch.float32, dtype)


def round_scale_up(scale: Tensor) -> Tensor:
    """The next number >= scale that float16, bfloat16 and float32 all hold exactly.

    Args:
        scale: positive float tensor of any shape; zeros become the smallest scale.

    Returns:
        float32, same shape.

    Raises:
        ValueError: a scale beyond float16's range or not finite.
    """
    return _rounded_up(_in_range(scale))


def _rounded_up(scale: Tensor) -> Tensor:
    # Below 2^-17 the steps of float16 are the larger ones.
    fine = ((scale.view(torch.int32) + DROPPED) & ~DROPPED).view(torch.float32)
    return torch.maximum(fine, torch.ceil(scale / SMALLEST_SCALE) * SMALLEST_SCALE).clamp_min(
        SMALLEST_SCALE
    )


def round_scale(scale: Tensor, *, checked: bool = True) -> Tensor:
    """The nearest number that float16, bfloat16 and float32 all hold exactly, never zero.

    Args:
        scale: float tensor of any shape, of either sign.
        checked: as for `search_group_scale`.

    Returns:
        float32, same shape and signs.

    Raises:
        ValueError: a magnitude beyond float16's range or not finite.
    """
    magnitude = (_in_range(scale) if checked else scale.float().contiguous()).abs()
    bits = magnitude.view(torch.int32)
    # Halfway goes to the even one.
    even = (bits >> DROPPED_BITS) & 1
    fine = ((bits + (DROPPED // 2 + even)) & ~DROPPED).view(torch.float32)
    coarse = torch.round(magnitude / SMALLEST_SCALE) * SMALLEST_SCALE
    rounded = torch.where(magnitude < SMALLEST_SCALE * 2**SIGNIFICANT_BITS, coarse, fine)
    return torch.copysign(rounded.clamp_min_(SMALLEST_SCALE), scale)


def _in_range(scale: Tensor) -> Tensor:
    """Float32, laid out in order."""
    scale = scale.to(torch.float32).contiguous()
    check_scales(scale)
    return scale


def check_scales(scale: Tensor) -> None:
    """Wait for scales, and refuse what float16 does not hold.

    Raises:
        ValueError: one is not finite, or too large.
    """
    if not bool((scale.abs() <= LARGEST_SCALE).all()):
        raise ValueError(f"scales must be finite and at most {LARGEST_SCALE}")


def absmax_scale(weight: Tensor, *, per_channel: bool, bits: int = 8) -> Tensor:
    """Scale that maps the largest magnitude to the largest code.

    Args:
        weight: [out, in], any float dtype.
        per_channel: one scale per output row, else one for the tensor.
        bits: 2 to 8.

    Returns:
        float32 [out] or [1], from `round_scale_up`.
    """
    # The magnitudes themselves would be a second weight in memory.
    ends = (weight.amin(1), weight.amax(1)) if per_channel else weight.aminmax()
    magnitude = torch.maximum(*(end.abs() for end in ends)).reshape(-1)
    return round_scale_up(magnitude.to(torch.float32) / largest_code(bits))


def _scaled(weight: Tensor, scale: Tensor) -> Tensor:
    return weight.to(torch.float32) / scale.to(torch.float32)[:, None]


def quantize(weight: Tensor, scale: Tensor, bits: int = 8) -> Tensor:
    """Nearest codes.

    Args:
        weight: [out, in].
        scale: [out] or [1], positive.
        bits: 2 to 8.

    Returns:
        int8 [out, in]; |dequantize(codes, scale) - weight| <= scale / 2 wherever the weight lies
        within ±q · scale.
    """
    limit = largest_code(bits)

    def codes_of(part: Tensor, scale: Tensor) -> Tensor:
        return _scaled(part, scale).round_().clamp_(-limit, limit).to(torch.int8)

    rows = max(AT_ONCE // max(weight.shape[1], 1), 1)
    if len(weight) <= rows:
        return codes_of(weight, scale)
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scales = scale.expand(len(weight))
    for into, *part in zip(*(t.split(rows) for t in (codes, weight, scales)), strict=True):
        into.copy_(codes_of(*part))
    return codes


def quantize_stochastic(
    weight: Tensor, scale: Tensor, generator: torch.Generator, bits: int = 8
) -> Tensor:
    """Codes rounded up or down at random, right on average: E[scale · code] = weight.

    For weights that were moved off the grid by less than half a step, which rounding to nearest
    would move straight back.

    Args:
        weight: [out, in].
        scale: [out] or [1], positive.
        generator: source of the rounding, on the weight's device.
        bits: 2 to 8.

    Returns:
        int8 [out, in], within one step of the weight.
    """
    limit = largest_code(bits)
    scaled = _scaled(weight, scale)
    noise = torch.rand(scaled.shape, generator=generator, device=scaled.device)
    below = scaled.floor()
    return (below + (noise < scaled - below)).clamp_(-limit, limit).to(torch.int8)


def quantize_tokens(rows: Tensor) -> tuple[Tensor, Tensor]:
    """What enters a linear layer, each token to nearest at a scale of its own, max |x| / 127.

    Args:
        rows: float [tokens, channels].

    Returns:
        int8 codes of the same shape, and float32 scales [tokens, 1], positive.
    """
    step = rows.abs().amax(1, keepdim=True).float().div_(largest_code(8))
    step.clamp_min_(torch.finfo(torch.float32).tiny)
    return torch.div(rows, step).round_().to(torch.int8), step


def dequantize(codes: Tensor, scale: Tensor) -> Tensor:
    """Codes times scale, row by row, in the scale's dtype.

    Args:
        codes: int8 [rows, columns].
        scale: [rows] or [1].

    Returns:
        [rows, columns].
    """
    return codes.to(scale.dtype) * scale[:, None]


def dequantize_groups(codes: Tensor, scale: Tensor) -> Tensor:
    """Codes times scale, group by group, in the scale's dtype.

    Args:
        codes: int8 [rows, columns].
        scale: [rows, groups]; groups divides columns.

    Returns:
        [rows, columns].
    """
    grouped = codes.to(scale.dtype).unflatten(1, (scale.shape[1], -1))
    return (grouped * scale[..., None]).flatten(1)


def pack_int4(codes: Tensor) -> Tensor:
    """Two 4-bit codes to a byte, the even column in the low nibble, offset by 8.

    Args:
        codes: int8 [rows, columns] in [-8, 7], columns even.

    Returns:
        uint8 [rows, columns / 2].

    Raises:
        ValueError: an odd number of columns.
    """
    if codes.shape[1] % 2:
        raise ValueError(f"4-bit codes pack in pairs, but there are {codes.shape[1]} columns")
    shifted = (codes + 8).to(torch.uint8)
    return shifted[:, ::2] | (shifted[:, 1::2] << 4)


def unpack_int4(packed: Tensor) -> Tensor:
    """Inverse of `pack_int4`.

    Args:
        packed: uint8 [rows, columns / 2].

    Returns:
        int8 [rows, columns] in [-8, 7].
    """
    return torch.stack((packed & 15, packed >> 4), dim=2).flatten(1).to(torch.int8) - 8


def quantize_groups(weight: Tensor, scale: Tensor, bits: int = 4) -> Tensor:
    """Nearest codes, unpacked.

    Args:
        weight: [rows, columns].
        scale: [rows, groups], not zero, of either sign; groups divides columns.
        bits: 2 to 8.

    Returns:
        int8 [rows, columns] in `code_range(bits)`.
    """
    codes = _scaled_groups(weight, scale).round_().clamp_(*code_range(bits))
    return codes.flatten(1).to(torch.int8)


def quantize_groups_stochastic(
    weight: Tensor, scale: Tensor, generator: torch.Generator, bits: int = 4
) -> Tensor:
    """As `quantize_groups`, but rounded at random as in `quantize_stochastic`."""
    scaled = _scaled_groups(weight, scale)
    noise = torch.rand(scaled.shape, generator=generator, device=scaled.device)
    below = scaled.floor()
    codes = (below + (noise < scaled - below)).clamp_(*code_range(bits))
    return codes.flatten(1).to(torch.int8)


def _scaled_groups(weight: Tensor, scale: Tensor) -> Tensor:
    grouped = weight.to(torch.float32).unflatten(1, (scale.shape[1], -1))
    return grouped / scale.to(torch.float32)[..., None]


@cache
def _shares(bits: int, device: torch.device) -> Tensor:
    """What the largest magnitude of a group is multiplied by, to be tried as its scale."""
    least, _ = code_range(bits)
    return torch.tensor([shrink / -least for shrink in SHRINKS], device=device)


def search_group_scale(
    weight: Tensor,
    importance: Tensor | None,
    group_size: int,
    bits: int = 4,
    *,
    checked: bool = True,
) -> Tensor:
    """Scales of the least weighted squared error over a grid.

    The largest magnitude of a group maps to the least code, -2^(bits-1) (its sign decides the
    scale's), then the scale is shrunk step by step: clipping a few weights makes the grid finer for
    the rest.

    Args:
        weight: [rows, columns]; `group_size` divides columns.
        importance: how much an error in each column matters, [columns], >= 0; None for alike.
        group_size: consecutive columns that share a scale.
        bits: 2 to 7.
        checked: whether a weight that has no scale is refused, for which a GPU is waited for; if
            not, its scale is one that `check_scales` refuses later.

    Returns:
        float32 [rows, columns / group_size], each exact in float16 and bfloat16 too.

    Raises:
        ValueError: a weight or an importance is not finite, or a weight is too large.
    """
    if checked and importance is not None and not bool(torch.isfinite(importance).all()):
        raise ValueError("the importance of columns holds NaN or Inf")
    groups = weight.to(torch.float32).unflatten(1, (-1, group_size))
    shape = (1, groups.shape[1], group_size)
    cost = torch.ones(shape) if importance is None else importance.float().reshape(shape)
    cost = cost.to(groups.device)
    largest = groups.gather(2, groups.abs().argmax(2, keepdim=True))[..., 0]
    sign = torch.where(largest > 0, -1.0, 1.0)
    best = torch.full_like(largest, torch.inf)
    least, most = code_range(bits)
    magnitudes = largest.abs() * _shares(bits, largest.device)[:, None, None]
    tried = sign * (round_scale_up(magnitudes) if checked else _rounded_up(magnitudes))
    chosen = tried[0]
    for scale in tried:
        codes = (groups / scale[..., None]).round_().clamp_(least, most)
        error = (codes.mul_(scale[..., None]).sub_(groups).square_() * cost).sum(2)
        better = error < best
        best = torch.where(better, error, best)
        chosen = torch.where(better, scale, chosen)
    return chosen
