"""From text to windows of token ids."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from spqlm.errors import SpqError


@dataclass(frozen=True)
class EncodedText:
    """A text as tokens, and the tokens that every window of it begins with.

    Some models have learned to read nothing that does not begin so (Gemma 3).

    Attributes:
        ids: of the text alone, int64 [tokens].
        begins: what the tokenizer puts before every text, int64 [few]; often BOS, or nothing.
    """

    ids: Tensor
    begins: Tensor

    @classmethod
    def of(cls, text: "Tensor | EncodedText") -> "EncodedText":
        """Token ids as a text whose windows begin with nothing else."""
        return text if isinstance(text, EncodedText) else cls(text, text[:0])

    def __len__(self) -> int:
        """Tokens of the text."""
        return len(self.ids)

    def __getitem__(self, part: slice) -> "EncodedText":
        """A part of the text, whose windows begin in the same way."""
        return replace(self, ids=self.ids[part])

    def room(self, context: int) -> int:
        """Tokens of the text in a window of `context` tokens.

        Raises:
            SpqError: there are none.
        """
        _positive("context", context)
        room = context - len(self.begins)
        if room < 1:
            raise SpqError(f"a context of {context} tokens has no room behind those it begins with")
        _require(len(self), room)
        return room

    def windows(self, parts: Tensor) -> Tensor:
        """Parts of the text, [windows, room], behind what windows begin with."""
        if not len(self.begins):
            return parts
        return torch.cat([self.begins.to(parts).expand(len(parts), -1), parts], dim=1)


def beginning(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that a tokenizer puts before every text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    starts = (at for at in range(len(whole)) if whole[at : at + len(bare)] == bare)
    return list(whole[: next(starts, 0)])


def encode(
    tokenizer: PreTrainedTokenizerBase, text: str, minimum: int, *, begin: bool = True
) -> EncodedText:
    """Encode a text in one piece.

    Args:
        tokenizer: any Hugging Face tokenizer.
        text: the text, however long.
        minimum: the least number of tokens that is of use, those that begin a window included.
        begin: whether every window begins with what the tokenizer puts before every text; else
            only the text does, as in most published perplexities.

    Raises:
        SpqError: if there are fewer than `minimum` tokens.
    """
    # verbose=False: a text longer than the model's context is what we want here, not a mistake.
    encoded = tokenizer(text, verbose=False, return_attention_mask=False)
    ids = torch.tensor(encoded["input_ids"], dtype=torch.int64)
    begins = ids.new_tensor(beginning(tokenizer) if begin else [])
    if len(begins) and torch.equal(ids[: len(begins)], begins):
        ids = ids[len(begins) :]
    _require(len(ids) + len(begins), minimum)
    return EncodedText(ids, begins)


def consecutive(
    text: Tensor | EncodedText, context: int, limit: int | None = None, stride: int | None = None
) -> Tensor:
    """Cut a text into windows from the start; what does not fill one is dropped.

    Args:
        text: tokens that fill one window at least.
        context: tokens per window, at least 1; those that it begins with are among them.
        limit: the most windows to return, at least 1; None for all.
        stride: tokens from one window's start to the next, at most `context`; None for `context`,
            which makes windows that do not overlap.

    Returns:
        Shape [windows, context], dtype of the ids; a view of them where windows begin with nothing.

    Raises:
        SpqError: if there is not one whole window, or a number is out of its range.
    """
    text = EncodedText.of(text)
    room = text.room(context)
    stride = context if stride is None else stride
    _positive("stride", stride)
    if stride > context:
        raise SpqError(f"stride must be at most the context of {context} tokens, not {stride}.")
    parts = text.ids.unfold(0, room, min(stride, room))
    if limit is not None:
        _positive("limit", limit)
        parts = parts[:limit]
    return text.windows(parts)


def sample(text: Tensor | EncodedText, context: int, count: int, seed: int) -> Tensor:
    """Draw windows that begin anywhere, with replacement; the same ones for the same seed.

    Args:
        text: tokens that fill one window at least.
        context: tokens per window, at least 1; those that it begins with are among them.
        count: number of windows, at least 1.
        seed: of the draw, which leaves torch's global generator alone.

    Returns:
        Shape [count, context], dtype and device of the ids.

    Raises:
        SpqError: if there is not one whole window, or `context` or `count` is below 1.
    """
    text = EncodedText.of(text)
    room = text.room(context)
    _positive("count", count)
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(text) - room + 1, (count,), generator=generator)
    return text.windows(text.ids.unfold(0, room, 1)[starts.to(text.ids.device)])


def _require(tokens: int, minimum: int) -> None:
    if tokens < minimum:
        raise SpqError(
            f"The text has {tokens} tokens, and at least {minimum} are needed:"
            " use a longer text or a shorter context."
        )


def _positive(name: str, value: int) -> None:
    if value < 1:
        raise SpqError(f"{name} must be at least 1, not {value}.")
