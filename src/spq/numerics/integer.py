"""Symmetric linear quantisation to signed integers.

w ≈ scale · code with codes in [-q, q], q = 2^(bits-1) - 1, and no zero point. Scales are rounded up
to eight significant bits inside the range of float16, so that one scale means exactly the same
number in float16, bfloat16 and float32: a model can be cast, saved and exported without moving
its weights.
"""

import torch
from torch import Tensor

SMALLEST_SCALE = 2.0**-24
LARGEST_SCALE = 65280.0
SIGNIFICANT_BITS = 8


def largest_code(bits: int) -> int:
    """Q = 2^(bits-1) - 1."""
    return 2 ** (bits - 1) - 1


def round_scale_up(scale: Tensor) -> Tensor:
    """The next number >= scale that float16, bfloat16 and float32 all hold exactly.

    Args:
        scale: positive float tensor of any shape; zeros become the smallest scale.

    Returns:
        float32, same shape.

    Raises:
        ValueError: a scale beyond float16's range or not finite.
    """
    scale = scale.to(torch.float32)
    if not bool(torch.isfinite(scale).all()) or bool((scale > LARGEST_SCALE).any()):
        raise ValueError(f"scales must be finite and at most {LARGEST_SCALE}")
    _, exponent = torch.frexp(scale)
    step = torch.exp2((exponent - SIGNIFICANT_BITS).clamp_min(-24).to(torch.float32))
    return (torch.ceil(scale / step) * step).clamp_min(SMALLEST_SCALE)


def absmax_scale(weight: Tensor, *, per_channel: bool, bits: int = 8) -> Tensor:
    """Scale that maps the largest magnitude to the largest code.

    Args:
        weight: [out, in], any float dtype.
        per_channel: one scale per output row, else one for the tensor.
        bits: 2 to 8.

    Returns:
        float32 [out] or [1], from `round_scale_up`.
    """
    magnitude = weight.abs().amax(dim=1) if per_channel else weight.abs().amax().reshape(1)
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
    return _scaled(weight, scale).round_().clamp_(-limit, limit).to(torch.int8)


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


def dequantize(codes: Tensor, scale: Tensor) -> Tensor:
    """Scale · codes in the scale's dtype.

    Args:
        codes: int8 [rows, columns].
        scale: [rows] or [1].

    Returns:
        [rows, columns], dtype of `scale`.
    """
    return codes.to(scale.dtype) * scale[:, None]
