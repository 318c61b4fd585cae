"""Attention of prompts in one native call: an attention implementation of transformers.

PyTorch's attention on a CPU takes as long for a prompt of a small model as all products of weights
together, and longer where a batch is padded (docs/kernel-measurements.md).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import causal_mask_function, sdpa_mask

from spqlm.decoding.padding import left_padding
from spqlm.native import attention

NAME = "spq"
REPLACED = "sdpa"


def use(model: PreTrainedModel) -> None:
    """Let a model attend so where it would use PyTorch's attention, if this processor can."""
    native = attention.available() and model.dtype == torch.bfloat16
    if native and model.config._attn_implementation == REPLACED:
        model.set_attn_implementation(NAME)


def leave(model: PreTrainedModel) -> None:
    """Undo `use`."""
    if model.config._attn_implementation == NAME:
        model.set_attn_implementation(REPLACED)


@contextmanager
def used(*models: PreTrainedModel) -> Iterator[None]:
    """`use` within the block, of models that attend by PyTorch."""
    found = [model for model in models if model.config._attn_implementation == REPLACED]
    for model in found:
        use(model)
    try:
        yield
    finally:
        for model in found:
            leave(model)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    cache: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """As transformers' `sdpa_attention_forward`, with masks as `mask` makes them.

    Args:
        module: whose attention it is.
        query: [sequences, query heads, count, width].
        key: [sequences, key heads, length, width].
        value: as key.
        attention_mask: int32 [sequences], the first position that each sees of those up to its own;
            or as for PyTorch's.
        dropout: share of weights that are dropped.
        scaling: of the scores; None is 1 / sqrt(width).
        is_causal: None is what the module says.
        position_bias: added to scores.
        cache: of continuous batching.
        **kwargs: passed on.

    Returns:
        [sequences, count, query heads, width], and None for the weights.
    """
    begins = attention_mask
    if attention_mask is None and 1 < query.shape[2] == key.shape[2]:
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        begins = torch.zeros(len(query), dtype=torch.int32) if causal else None
    if begins is not None and begins.ndim == 1:
        plain = not dropout and position_bias is None and cache is None
        if plain:
            scale = query.shape[-1] ** -0.5 if scaling is None else scaling
            found = attention.causal(query, key, value, begins, scale)
            if found is not None:
                return found, None
    if attention_mask is not None and attention_mask.ndim == 1:
        attention_mask = _expanded(attention_mask, query.shape[2], key.shape[2])
    return sdpa_attention_forward(
        module,
        query,
        key,
        value,
        attention_mask,
        dropout=dropout,
        scaling=scaling,
        is_causal=is_causal,
        position_bias=position_bias,
        cache=cache,
        **kwargs,
    )


def mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Any = causal_mask_function,
    attention_mask: Tensor | None = None,
    **kwargs: Any,
) -> Tensor | None:
    """As transformers' `sdpa_mask`, but one number a sequence where padding is on the left alone.

    Returns:
        As `sdpa_mask`, None or [sequences, 1, count, length]; or int32 [sequences] as `attend`
        takes it.
    """
    native = (
        mask_function is causal_mask_function
        and kwargs.get("allow_is_causal_skip", True)
        and not torch.compiler.is_compiling()
        and kv_offset == 0
        and 1 < q_length
        and q_offset + q_length == kv_length
    )
    if native and attention_mask is None and q_offset:
        return torch.zeros(batch_size, dtype=torch.int32, device=kwargs.get("device"))
    if native and attention_mask is not None and attention_mask.shape == (batch_size, kv_length):
        padding = left_padding(attention_mask)
        if padding is not None:
            return padding.to(torch.int32)
    return sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        mask_function=mask_function,
        attention_mask=attention_mask,
        **kwargs,
    )


def _expanded(begins: Tensor, count: int, length: int) -> Tensor:
    """The mask that these numbers stand for, [sequences, 1, count, length]."""
    key = torch.arange(length, device=begins.device)
    query = key[length - count :, None]
    return ((key <= query) & (key >= begins[:, None, None]))[:, None]


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, mask)
