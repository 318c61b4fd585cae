"""Factors on channels that make what enters a linear layer easier to round to int8.

y = W x stays what it is when channel j of x is divided by s_j and column j of W multiplied by it
(SmoothQuant, arXiv 2211.10438, equation 3). Factors here are powers of two: a float times one of
them has the same digits, so nothing is rounded.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from spqlm.numerics.integer import absmax_scale, dequantize, quantize, quantize_tokens

# Powers of two beyond which the range of float16 is at stake.
LARGEST_EXPONENT = 12
# Of the search for factors: enough for the loss to settle.
STEPS = 120
RATE = 0.2


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


class Reader(NamedTuple):
    """A weight, and what its errors cost.

    Attributes:
        weight: float32 [rows, columns].
        tokens: w, what each token counts, [tokens].
        output: o, what each row counts, [rows].
    """

    weight: Tensor
    tokens: Tensor
    output: Tensor


def int8_loss(reader: Reader, rows: Tensor, exponents: Tensor) -> float:
    """Nats per token that a weight and its inputs cost in int8, with factors between them.

    ½ Σ_i o_i Σ_t w_t (ŷ_ti - y_ti)² / Σ_t w_t, with each row of the weight and each token at a
    scale of its own.

    Args:
        reader: the weight.
        rows: what enters it, float32 [tokens, columns].
        exponents: of two, for each input: the column is multiplied, the input divided.
    """
    factors = torch.exp2(exponents.float())
    scaled = reader.weight * factors
    scale = absmax_scale(scaled, per_channel=True)
    codes, step = quantize_tokens(rows / factors)
    stored = dequantize(quantize(scaled, scale), scale)
    error = (codes.float() @ stored.T).mul_(step) - rows @ reader.weight.T
    return 0.5 * float(reader.output @ (_shares(reader.tokens) @ error.square_()))


def _shares(tokens: Tensor) -> Tensor:
    return tokens / tokens.sum().clamp_min(torch.finfo(torch.float32).tiny)


@torch.enable_grad()
def fitted_exponents(
    readers: Sequence[Reader], rows: Tensor, channel: Tensor, start: Tensor
) -> Tensor:
    """Exponents for which `int8_loss` is about least, by descent on what it is expected to be.

    A number rounded at step Δ is off by Δ² / 12, squared, on average. So a reader loses

        1/24 (Σ_t w_t Δ_t² Σ_ij o_i W_ij² s_j² + Σ_i o_i Δ_i² Σ_tj w_t x_tj² / s_j²),

    where Δ_t = max_j |x_tj / s_j| / 127, Δ_i = max_j |W_ij s_j| / 127 and Σ_t w_t = 1. Adam goes
    down the logarithm of the sum over readers: first for any s, then for powers of two, with the
    gradient of s before it was rounded (straight through, arXiv 1308.3432).

    Args:
        readers: weights of the same columns.
        rows: what enters them, float32 [tokens, columns].
        channel: of each column, int64 [columns]; those of one channel have one factor.
        start: where to begin, whole numbers, float32 [channels].

    Returns:
        the best whole numbers that were met, float32 [channels]; `start` where nothing is lost.
    """
    expected = _Expected(readers, rows)
    position = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([position], lr=RATE)
    best, least = start, torch.inf
    for step in range(STEPS):
        whole = step == 0 or step >= STEPS // 2
        used = position + (position.round() - position).detach() if whole else position
        loss = expected.loss(torch.exp2(used)[channel])
        value = float(loss.detach())
        if not 0 < value < torch.inf:
            break
        if whole and value < least:
            best, least = position.detach().round(), value
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / STEPS)
        optimizer.zero_grad()
        loss.log().backward()
        optimizer.step()
    return (best - best.median()).clamp(-LARGEST_EXPONENT, LARGEST_EXPONENT)


class _Expected:
    """Up to a constant, what rounding weights and their inputs is expected to cost together."""

    def __init__(self, readers: Sequence[Reader], rows: Tensor) -> None:
        self._rows = rows.abs()
        self._weights = [reader.weight.abs() for reader in readers]
        self._tokens = [_shares(reader.tokens) for reader in readers]
        self._outputs = [reader.output.float() for reader in readers]
        squared, numbers = rows.square(), range(len(readers))
        self._by_weight = [self._outputs[n] @ self._weights[n].square() for n in numbers]
        self._by_input = [self._tokens[n] @ squared for n in numbers]

    def loss(self, factors: Tensor) -> Tensor:
        """[], differentiable in the factors, [columns]."""
        of_tokens = (self._rows / factors).amax(1).square()
        found = factors.new_zeros(())
        for number, weight in enumerate(self._weights):
            of_rows = (weight * factors).amax(1).square()
            inputs = (self._tokens[number] @ of_tokens) * (
                self._by_weight[number] @ factors.square()
            )
            weights = (self._outputs[number] @ of_rows) * (self._by_input[number] @ factors.pow(-2))
            found = found + inputs + weights
        return found
