"""What a model can be given to read."""

import sys

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spqlm.errors import SpqError

PROMPT_TOKENS = 24


def check_context(model: PreTrainedModel, context: int) -> None:
    """Refuse windows that the model has no positions for.

    Raises:
        SpqError: `context` below 2 or beyond the model's positions.
    """
    if context < 2:
        raise SpqError(f"context must be at least 2 tokens, not {context}.")
    left = room(model, context)
    if left < 0:
        most = context + left
        raise SpqError(
            f"context {context} exceeds the model's {most} positions: use at most {most}."
        )


def room(model: PreTrainedModel, tokens: int) -> int:
    """Positions that are left behind so many tokens; negative where those are too many already."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return (sys.maxsize if positions is None else positions) - tokens


def fixed_prompt(model: PreTrainedModel) -> Tensor:
    """Token ids that a model is tried on, before anything is done and when all is done.

    Returns:
        int64 [1, tokens], on the CPU: PROMPT_TOKENS, or as many as the model has positions for.
    """
    tokens = PROMPT_TOKENS + min(room(model, PROMPT_TOKENS), 0)
    size = model.config.get_text_config().vocab_size
    return torch.randint(size, (1, tokens), generator=torch.Generator().manual_seed(0))


def check_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that writes tokens which the model does not have.

    Tokens that were added to a vocabulary may lie beyond the model's, as the one for images in the
    tokenizer of Gemma 3 does; text that holds one is refused by `check_vocabulary`.

    Raises:
        SpqError: its vocabulary is larger than the model's.
    """
    size, tokens = model.config.get_text_config().vocab_size, tokenizer.vocab_size
    if tokens > size:
        raise SpqError(
            f"the tokenizer has {tokens} tokens and the model {size}:"
            " use the tokenizer that belongs to the model."
        )


def check_vocabulary(model: PreTrainedModel, windows: Tensor) -> None:
    """Refuse token ids of another tokenizer.

    Args:
        model: whose vocabulary counts.
        windows: token ids of any shape, at least one.

    Raises:
        SpqError: an id outside the vocabulary.
    """
    size = model.config.get_text_config().vocab_size
    largest = int(windows.max())
    if largest >= size:
        raise SpqError(
            f"Token {largest} is outside the model's vocabulary of {size}:"
            " use the tokenizer that belongs to the model."
        )
