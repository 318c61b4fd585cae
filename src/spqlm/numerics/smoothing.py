"""Factors on channels that make what enters a linear layer easier to round to int8.

y = W x stays what it is when channel j of x is divided by s_j and column j of W multiplied by it
(SmoothQuant, arXiv 2211.10438, equation 3). Factors here are powers of two: a float times one of
them has the same digits, so nothing is rounded.
"""

import torch
from torch import Tensor

from spqlm.numerics.integer import absmax_scale, dequantize, quantize, quantize_tokens

# Powers of two beyond which the range of float16 is at stake.
LARGEST_EXPONENT = 12


def exponents(inputs: Tensor, weights: Tensor, strength: float) -> Tensor:
    """log2 of s_j = max|x_j|^α / max|W_j|^(1 - α) (equation 4), to the nearest integer.

    One factor on all channels changes nothing, so it is taken out: the middle channel has none.

    Args:
        inputs: max|x_j| of the text, [channels], none below 0.
        weights: max|W_j| over the rows of all that reads the channel, [channels].
        strength: α, from 0 to 1: how much of the difference between channels weights take over.

    Returns:
        float32 [channels], whole numbers; 0 for a channel that is never used.
    """
    used = (inputs > 0) & (weights > 0)
    tiny = torch.finfo(torch.float32).tiny
    logs = [values.float().clamp_min(tiny).log2() for values in (inputs, weights)]
    wanted = strength * logs[0] - (1 - strength) * logs[1]
    if not bool(used.any()):
        return torch.zeros_like(wanted)
    wanted = (wanted - wanted[used].median()).round()
    return (wanted * used).clamp(-LARGEST_EXPONENT, LARGEST_EXPONENT)


def channels_of(inputs: int, channels: int, width: int) -> Tensor:
    """Which channel of a writer each input of a reader is, int64 [inputs].

    Args:
        inputs: of the reader.
        channels: of the writer; each is read `inputs / channels` times.
        width: consecutive channels that are read together: of a head, whose values all query heads
            of its group read.
    """
    index = torch.arange(channels).view(-1, 1, width)
    return index.expand(-1, inputs // channels, -1).flatten()


def largest_of(values: Tensor, channel: Tensor) -> Tensor:
    """The largest value of the inputs that read each channel.

    Args:
        values: float32 [inputs].
        channel: of each input, from `channels_of`.

    Returns:
        float32 [channels].
    """
    largest = values.new_zeros(int(channel.max()) + 1)
    return largest.scatter_reduce_(0, channel, values, "amax")


def int8_loss(
    weight: Tensor, rows: Tensor, tokens: Tensor, output: Tensor, exponents: Tensor
) -> float:
    """Nats per token that a weight and its inputs cost in int8, with factors between them.

    ½ Σ_i o_i Σ_t w_t (ŷ_ti - y_ti)² / Σ_t w_t, with each row of the weight and each token at a
    scale of its own.

    Args:
        weight: float32 [rows, columns].
        rows: what enters it, float32 [tokens, columns].
        tokens: w, what each token counts, [tokens].
        output: o, [rows].
        exponents: of two, for each input: the column is multiplied, the input divided.
    """
    factors = torch.exp2(exponents.float())
    scaled = weight * factors
    scale = absmax_scale(scaled, per_channel=True)
    codes, step = quantize_tokens(rows / factors)
    stored = dequantize(quantize(scaled, scale), scale)
    error = (codes.float() @ stored.T).mul_(step) - rows @ weight.T
    weighed = tokens @ error.square_() / tokens.sum().clamp_min(torch.finfo(torch.float32).tiny)
    return 0.5 * float(output @ weighed)
