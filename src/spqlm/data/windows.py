"""From text to windows of token ids."""

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from spqlm.errors import SpqError


def encode(tokenizer: PreTrainedTokenizerBase, text: str, minimum: int) -> Tensor:
    """Encode a text in one piece, special tokens as the tokenizer adds them by default.

    Args:
        tokenizer: any Hugging Face tokenizer.
        text: the text, however long.
        minimum: the least number of tokens that is of use.

    Returns:
        Token ids, int64, shape [tokens].

    Raises:
        SpqError: if there are fewer than `minimum` tokens.
    """
    # verbose=False: a text longer than the model's context is what we want here, not a mistake.
    encoded = tokenizer(text, verbose=False, return_attention_mask=False)
    ids = torch.tensor(encoded["input_ids"], dtype=torch.int64)
    _require(ids, minimum)
    return ids


def consecutive(
    ids: Tensor, context: int, limit: int | None = None, stride: int | None = None
) -> Tensor:
    """Cut ids into windows from the start; what does not fill one is dropped.

    Args:
        ids: shape [tokens], at least `context` of them.
        context: tokens per window, at least 1.
        limit: the most windows to return, at least 1; None for all.
        stride: tokens from one window's start to the next, at most `context`; None for `context`,
            which makes windows that do not overlap.

    Returns:
        Shape [windows, context], dtype of `ids`; a view of it.

    Raises:
        SpqError: if there is not one whole window, or a number is out of its range.
    """
    _positive("context", context)
    _require(ids, context)
    stride = context if stride is None else stride
    _positive("stride", stride)
    if stride > context:
        raise SpqError(f"stride must be at most the context of {context} tokens, not {stride}.")
    windows = ids.unfold(0, context, stride)
    if limit is not None:
        _positive("limit", limit)
        windows = windows[:limit]
    return windows


def sample(ids: Tensor, context: int, count: int, seed: int) -> Tensor:
    """Draw windows that begin anywhere, with replacement; the same ones for the same seed.

    Args:
        ids: shape [tokens], at least `context` of them.
        context: tokens per window, at least 1.
        count: number of windows, at least 1.
        seed: of the draw, which leaves torch's global generator alone.

    Returns:
        Shape [count, context], dtype and device of `ids`.

    Raises:
        SpqError: if there is not one whole window, or `context` or `count` is below 1.
    """
    _positive("context", context)
    _positive("count", count)
    _require(ids, context)
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(ids.numel() - context + 1, (count,), generator=generator)
    return ids.unfold(0, context, 1)[starts.to(ids.device)]


def _require(ids: Tensor, minimum: int) -> None:
    if ids.numel() < minimum:
        raise SpqError(
            f"The text has {ids.numel()} tokens, and at least {minimum} are needed:"
            " use a longer text or a shorter context."
        )


def _positive(name: str, value: int) -> None:
    if value < 1:
        raise SpqError(f"{name} must be at least 1, not {value}.")
