"""Perplexity over non-overlapping windows of a text, with the protocol in the result."""

import math
import statistics
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from spq.data import consecutive
from spq.errors import SpqError
from spq.evaluation.limits import check_context, check_vocabulary
from spq.progress import track

# Positions whose logits are held in float32 at a time: 25 MB for a vocabulary of 49,152.
CHUNK_POSITIONS = 128


class Perplexity(BaseModel):
    """A perplexity and all that is needed to compute it again.

    Attributes:
        perplexity: exp(nll).
        nll: mean negative log-likelihood in nats per scored token.
        standard_error: of `perplexity`, by the delta method: perplexity times the standard error
            of the windows' mean nll. None for a single window.
        windows: number of windows scored.
        context: tokens per window.
        stride: tokens from one window's start to the next; equal to `context`.
        tokens: targets scored: windows x (context - 1).
        dtype: of the model's floating-point parameters, e.g. "bfloat16".
        device: where the model's first parameters lie, e.g. "cpu" or "cuda:0".
        protocol: the above in one sentence.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    perplexity: float
    nll: float
    standard_error: float | None
    windows: int
    context: int
    stride: int
    tokens: int
    dtype: str
    device: str
    protocol: str


def perplexity(
    model: PreTrainedModel,
    ids: Tensor,
    context: int,
    *,
    limit: int | None = None,
    description: str = "perplexity",
) -> Perplexity:
    """Score non-overlapping windows from the start of a text, each on its own.

    The first token of a window is context only. The model is left in the mode it is found in.

    Args:
        model: a causal language model.
        ids: token ids, int64, shape [tokens], on any device.
        context: tokens per window, at least 2 and at most what the model has positions for.
        limit: the most windows to score, from the start; None for all.
        description: shown beside the progress bar.

    Raises:
        SpqError: if `context` does not suit the model, the ids do not fill one window or are not
            all in the model's vocabulary, or the loss is not finite.
    """
    check_context(model, context)
    windows = consecutive(ids, context, limit)
    check_vocabulary(model, windows)
    with _evaluating(model), torch.inference_mode():
        tracked = track(windows, description, len(windows))
        losses = [_window_nll(model, window) for window in tracked]
    nll = math.fsum(losses) / len(losses)
    if not math.isfinite(nll) or nll > math.log(torch.finfo(torch.float64).max):
        broken = next(i for i, loss in enumerate(losses) if not loss < 700)
        raise SpqError(
            f"The loss is {losses[broken]} on window {broken + 1}:"
            f" the model's weights are broken, or {_dtype(model)} is too narrow for it."
        )
    value = math.exp(nll)
    error = statistics.stdev(losses) / math.sqrt(len(losses)) if len(losses) > 1 else None
    return Perplexity(
        perplexity=value,
        nll=nll,
        standard_error=None if error is None else value * error,
        windows=len(losses),
        context=context,
        stride=context,
        tokens=len(losses) * (context - 1),
        dtype=_dtype(model),
        device=str(model.device),
        protocol=f"exp of the mean nll per token over {len(losses)} non-overlapping windows of"
        f" {context} tokens from the start of the text, the first token of each not scored,"
        f" model in {_dtype(model)}, loss in float32.",
    )


def _window_nll(model: PreTrainedModel, window: Tensor) -> float:
    """Mean nll in nats per target of one window, shape [context]."""
    window = window.to(model.device)
    logits = model(input_ids=window[None], use_cache=False).logits[0, :-1]
    targets = window[1:].to(logits.device)
    # Only a chunk of logits is ever in float32: the whole would take twice the model's own.
    sums = [
        functional.cross_entropy(chunk.float(), target, reduction="sum").item()
        for chunk, target in zip(
            logits.split(CHUNK_POSITIONS), targets.split(CHUNK_POSITIONS), strict=True
        )
    ]
    return math.fsum(sums) / len(targets)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode, and each module back into its own mode after."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _dtype(model: PreTrainedModel) -> str:
    return str(model.dtype).removeprefix("torch.")
