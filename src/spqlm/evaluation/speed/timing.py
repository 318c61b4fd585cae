"""Seconds of a prefill, of decode steps, and of `generate`; bytes and products that they take."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from spqlm.model.experts import PerExpert, expert_count, is_packed
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


def bytes_read(model: PreTrainedModel) -> int:
    """Bytes of weights that one decode step reads: all but an embedding that is only looked up.

    An embedding table counts where the output projection shares its storage. Of experts those
    count that a token is sent to, as a share of all in their block.
    """
    shares = _active_shares(model)
    lookup = model.get_input_embeddings()
    inside = set() if lookup is None else set(lookup.modules())
    others = [module for module in model.modules() if module not in inside]
    sizes = {
        tensor.data_ptr(): tensor.nbytes * shares.get(module, 1.0)
        for module in others
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False))
    }
    return round(sum(sizes.values()))


def _active_shares(model: PreTrainedModel) -> dict[nn.Module, float]:
    """Share of its experts that a token is sent to, of blocks of experts and what is in them."""
    chosen = getattr(model.config.get_text_config(), "num_experts_per_tok", None)
    blocks = [m for m in model.modules() if isinstance(m, PerExpert) or is_packed(m)]
    return {
        module: min(chosen / expert_count(block), 1.0)
        for block in blocks
        if chosen
        for module in block.modules()
    }


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
