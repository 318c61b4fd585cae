"""Seconds of a prefill, of decode steps, and of `generate`; products that they take."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from spqlm.model.limits import check_context


@dataclass(frozen=True)
class Measure:
    """One figure to take of every model.

    Attributes:
        kind: `prefill` reads `prompt` tokens at once; `decode` is single forward passes with a
            cache, the likeliest token fed back; `generate` is transformers' own `generate`, greedy.
        batch: sequences at once.
        prompt: tokens of each sequence that are there before.
        tokens: tokens of each sequence that are timed; for `prefill` those of the prompt.
    """

    kind: Literal["prefill", "decode", "generate"]
    batch: int
    prompt: int
    tokens: int

    @property
    def rate_tokens(self) -> int:
        """Tokens that the seconds stand for, over all sequences."""
        return self.batch * self.tokens


@torch.inference_mode()
def seconds(model: PreTrainedModel, measure: Measure) -> float:
    """Time one measure once.

    Prompts are random token ids, the same for every model with the same vocabulary.

    Args:
        model: in eval mode.
        measure: what to time.

    Returns:
        wall time of the tokens that `measure.rate_tokens` counts, in seconds.

    Raises:
        SpqError: the model has fewer positions than the measure needs.
    """
    timed = 0 if measure.kind == "prefill" else measure.tokens
    check_context(model, max(2, measure.prompt + timed))
    ids = _prompt(model, measure.batch, measure.prompt)
    if measure.kind == "prefill":
        return _elapsed(model, lambda: _read(model, ids))
    if measure.kind == "decode":
        return _decode(model, ids, measure.tokens)
    return _generate(model, ids, measure.tokens)


def _read(model: PreTrainedModel, ids: Tensor, cache: Any = None) -> Any:
    # As `generate` does: only the last position's logits are computed.
    return model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)


def _decode(model: PreTrainedModel, ids: Tensor, tokens: int) -> float:
    output = _read(model, ids)

    def steps() -> None:
        step = output
        for _ in range(tokens):
            step = _read(model, step.logits[:, -1:].argmax(-1), step.past_key_values)

    return _elapsed(model, steps)


def _generate(model: PreTrainedModel, ids: Tensor, tokens: int) -> float:
    """Of `tokens` tokens beyond the first, by difference: prefill and set-up cancel."""

    def write(count: int) -> None:
        writer: Any = model
        writer.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )

    first = _elapsed(model, lambda: write(1))
    return max(_elapsed(model, lambda: write(1 + tokens)) - first, 1e-9)


def _elapsed(model: PreTrainedModel, work: Callable[[], object]) -> float:
    _synchronize(model)
    started = time.perf_counter()
    work()
    _synchronize(model)
    return time.perf_counter() - started


def _synchronize(model: PreTrainedModel) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


def _prompt(model: PreTrainedModel, batch: int, tokens: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.randint(vocabulary, (batch, tokens), generator=generator)
    return ids.to(model.device)


def products(model: PreTrainedModel) -> int:
    """Multiplications per token in the decoder's linear layers, as they are factorised or pruned.

    The output projection is left out, since a prefill computes it for its last token only; so is
    attention over the context.
    """
    head = model.get_output_embeddings()
    linears: list[Any] = [m for m in model.modules() if m is not head and _is_linear(m)]
    return sum(linear.in_features * linear.out_features for linear in linears)


def _is_linear(module: nn.Module) -> bool:
    """Layers with a weight of their own, not pairs of such layers."""
    return hasattr(module, "in_features") and not any(
        hasattr(child, "in_features") for child in module.children()
    )
