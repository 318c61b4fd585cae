"""Perplexity over windows of a text, with the protocol in the result."""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Self

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from spqlm.data import EncodedText, consecutive
from spqlm.decoding import prompt_attention
from spqlm.errors import SpqError
from spqlm.evaluation.agreement import Agreement, Reference, compare
from spqlm.evaluation.journal import Journal, digest
from spqlm.kernels.widening import widened_products
from spqlm.model.limits import check_context, check_vocabulary
from spqlm.model.placement import input_device
from spqlm.numerics.objectives import chunks
from spqlm.progress import track


class Perplexity(BaseModel):
    """A perplexity and all that is needed to compute it again.

    Attributes:
        perplexity: exp(nll).
        nll: mean negative log-likelihood in nats per scored token.
        standard_error: of `perplexity`, by the delta method: perplexity times the standard error
            of the windows' mean nll. None for a single window.
        windows: number of windows scored.
        context: tokens per window.
        stride: tokens from one window's start to the next.
        begins: tokens that each window begins with, as the tokenizer begins a text; among those of
            the context, and never scored.
        tokens: targets scored. Each once: of a window that overlaps the one before, the last
            `stride` tokens; of any other, all but the first, or all behind those it begins with.
        dtype: of the model's floating-point parameters, e.g. "bfloat16".
        device: where the model computes first, e.g. "cpu" or "cuda:0".
        protocol: the above in one sentence.
        agreement: with a reference model, where there is one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    perplexity: PositiveFloat
    nll: float
    standard_error: NonNegativeFloat | None
    windows: PositiveInt
    context: PositiveInt
    stride: PositiveInt
    begins: tuple[int, ...] = ()
    tokens: PositiveInt
    dtype: str
    device: str
    protocol: str
    agreement: Agreement | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        """Files are read again, and drawn from: by then a figure may have been changed."""
        if abs(math.log(self.perplexity) - self.nll) > 1e-3:
            raise ValueError("the perplexity is not exp(nll)")
        return self


def perplexity(
    model: PreTrainedModel,
    text: Tensor | EncodedText,
    context: int,
    *,
    stride: int | None = None,
    limit: int | None = None,
    reference: Reference | None = None,
    journal: Journal | None = None,
    description: str = "perplexity",
) -> Perplexity:
    """Score windows from the start of a text, each on its own.

    The model is left in the mode it is found in. No more than one window's logits of each model
    are held at a time.

    Args:
        model: a causal language model.
        text: token ids, int64, shape [tokens], or a text whose windows begin as the tokenizer
            begins it.
        context: tokens per window, at least 2 and at most what the model has positions for.
        stride: tokens from one window's start to the next; None or `context`: no overlap.
        limit: the most windows to score, from the start; None for all.
        reference: measure the agreement with this model too.
        journal: windows scored earlier, which are not scored again.
        description: shown beside the progress bar.

    Raises:
        SpqError: if `context` or `stride` does not suit the model, the ids do not fill one window
            or are not all in the model's vocabulary, or the loss is not finite.
    """
    stride = context if stride is None else stride
    readers = [model, reference.model] if reference else [model]
    for reader in readers:
        check_context(reader, context)
    text = EncodedText.of(text)
    begins = len(text.begins)
    windows = consecutive(text, context, limit, stride)
    firsts = [max(1, begins), max(1, begins, context - stride)]
    check_vocabulary(model, windows)
    if reference is not None:
        reference.check(model)
    journal = Journal() if journal is None else journal
    with ExitStack() as stack:
        for reader in readers:
            stack.enter_context(evaluating(reader))
        scores = [
            _scored(model, window, firsts[index > 0], reference, journal)
            for index, window in enumerate(track(windows, description, len(windows)))
        ]
    counts = [int(score[0]) for score in scores]
    nll, nll_error = _mean([score[1] for score in scores], counts)
    _check_finite(model, nll, scores)
    value = math.exp(nll)
    return Perplexity(
        perplexity=value,
        nll=nll,
        standard_error=None if nll_error is None else value * nll_error,
        windows=len(windows),
        context=context,
        stride=stride,
        begins=tuple(text.begins.tolist()),
        tokens=sum(counts),
        dtype=_dtype(model),
        device=str(input_device(model)),
        protocol=_protocol(model, len(windows), context, stride, text.begins.tolist()),
        agreement=None if reference is None else _agreement(reference, scores),
    )


# Tokens scored, Σ nll, and against a reference Σ KL and the tokens with the same argmax.
_Score = Sequence[float]


def _scored(
    model: PreTrainedModel,
    window: Tensor,
    first: int,
    reference: Reference | None,
    journal: Journal,
) -> _Score:
    """Of a window, shape [context], from its token `first` on."""
    against = reference.digest if reference else None
    key = digest(["window", window.tolist(), first, against])
    known: _Score | None = journal.get(key)
    if known is None:
        known = _window(model, window, first, reference)
        if all(map(math.isfinite, known)):
            journal.put({key: known}, len(window))
    return known


def _window(
    model: PreTrainedModel, window: Tensor, first: int, reference: Reference | None
) -> _Score:
    targets = window[first:].to(input_device(model))
    own = _logits(model, window, first)
    others = None if reference is None else _logits(reference.model, window, first)
    losses, divergences, same = [], [], 0
    # Only a chunk of logits is ever in float32: the whole would take twice the model's own.
    for chunk in chunks(own):
        logits = own[chunk].float()
        losses.append(functional.cross_entropy(logits, targets[chunk], reduction="sum").item())
        if others is not None:
            divergence, agreed = compare(logits, others[chunk])
            divergences.append(divergence)
            same += agreed
    return [len(targets), math.fsum(losses), math.fsum(divergences), same]


def _logits(model: PreTrainedModel, window: Tensor, first: int) -> Tensor:
    """Shape [context - first, vocabulary]: those that predict the tokens from `first` on."""
    widened = widened_products(model.dtype)
    with torch.inference_mode(), widened, prompt_attention.used(model):
        output = model(input_ids=window[None].to(input_device(model)), use_cache=False)
    logits: Tensor = output.logits[0, first - 1 : -1]
    return logits


def _mean(sums: Sequence[float], counts: Sequence[float]) -> tuple[float, float | None]:
    """Mean per token of windows' sums, and the standard error of that ratio over windows."""
    total, number = math.fsum(counts), len(sums)
    mean = math.fsum(sums) / total
    if number < 2:
        return mean, None
    squares = math.fsum((s - c * mean) ** 2 for s, c in zip(sums, counts, strict=True))
    return mean, math.sqrt(squares * number / (number - 1)) / total


def _agreement(reference: Reference, scores: Sequence[_Score]) -> Agreement:
    counts, _, divergences, same = zip(*scores, strict=True)
    divergence, divergence_error = _mean(divergences, counts)
    share, share_error = _mean(same, counts)
    return Agreement(
        reference=reference.name,
        divergence=divergence,
        divergence_error=divergence_error,
        same_top=share,
        same_top_error=share_error,
    )


def _check_finite(model: PreTrainedModel, nll: float, scores: Sequence[_Score]) -> None:
    for index, score in enumerate(scores):
        if not math.isfinite(score[2]):
            raise SpqError(
                f"The KL divergence is {score[2]} on window {index + 1}: one of the models gives "
                "logits that are not finite."
            )
    losses = [score[1] / score[0] for score in scores]
    if not math.isfinite(nll) or nll > math.log(torch.finfo(torch.float64).max):
        broken = next(i for i, loss in enumerate(losses) if not loss < 700)
        raise SpqError(
            f"The loss is {losses[broken]} on window {broken + 1}:"
            f" the model's weights are broken, or {_dtype(model)} is too narrow for it."
        )


def _protocol(
    model: PreTrainedModel, windows: int, context: int, stride: int, begins: list[int]
) -> str:
    laid, unscored = "non-overlapping windows", "the first token of each not scored"
    began = ""
    if begins:
        listed = " ".join(map(str, begins))
        began = f" each beginning with {listed} as the tokenizer begins a text,"
        unscored = "all tokens behind that scored"
    if stride < context - len(begins):
        laid = f"windows, {stride} tokens apart,"
        rest = "all behind that" if begins else "all but the first"
        unscored = f"the last {stride} tokens of each scored, of the first window {rest}"
    return (
        f"exp of the mean nll per token over {windows} {laid} of {context} tokens from the start"
        f" of the text,{began} {unscored}, model in {_dtype(model)}, loss in float32."
    )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
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
