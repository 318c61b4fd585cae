"""Greedy decoding of a batch that a sequence leaves when it ends, so that none waits for others."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig


def greedy_batch(
    model: Any,
    input_ids: Tensor,
    logits_processor: Callable[[Tensor, Tensor], Tensor],
    stopping_criteria: Callable[[Tensor, Tensor], Tensor],
    generation_config: GenerationConfig,
    **model_kwargs: Any,
) -> Tensor:
    """What transformers' `generate` decodes with where this is its `custom_generate`.

    Its own greedy search computes every step for all sequences until the last one has ended.

    Args:
        model: a causal language model whose cache can be selected from, as a `DynamicCache` can.
        input_ids: [sequences, length], padded on the left.
        logits_processor: as `generate` makes it.
        stopping_criteria: as `generate` makes it.
        generation_config: with a padding token.
        model_kwargs: as `generate` makes them.

    Returns:
        int64 [sequences, length of the longest], each padded behind its end.
    """
    ended = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
    computed = torch.arange(len(input_ids), device=input_ids.device)
    inputs = model.prepare_inputs_for_generation(input_ids, is_first_iteration=True, **model_kwargs)
    while True:
        output = model(**inputs, return_dict=True)
        model_kwargs = model._update_model_kwargs_for_generation(output, model_kwargs)
        # Processors and criteria may know the sequences by their place: they see all of them.
        logits = torch.zeros(len(ended), output.logits.shape[-1], device=input_ids.device)
        logits[computed] = output.logits[:, -1].float()
        scores = logits_processor(input_ids, logits)
        tokens = scores.argmax(dim=1).masked_fill(ended, generation_config.pad_token_id)
        input_ids = torch.cat([input_ids, tokens[:, None]], dim=1)
        ended = ended | stopping_criteria(input_ids, scores)
        if ended.all():
            return input_ids
        kept = (~ended[computed]).nonzero().flatten()
        if len(kept) < len(computed):
            model_kwargs = _select(model_kwargs, kept, len(computed))
            computed = computed[kept]
        inputs = model.prepare_inputs_for_generation(
            input_ids[computed], next_sequence_length=1, **model_kwargs
        )


def _select(model_kwargs: dict[str, Any], kept: Tensor, count: int) -> dict[str, Any]:
    model_kwargs["past_key_values"].batch_select_indices(kept)
    return {
        name: value[kept] if isinstance(value, Tensor) and value.shape[:1] == (count,) else value
        for name, value in model_kwargs.items()
    }
