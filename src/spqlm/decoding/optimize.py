"""Decoding a token of every sequence in one native call, inside transformers' own `generate`."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from spqlm.decoding import prompt_attention
from spqlm.decoding.cuda_graphs import decode_by_graphs
from spqlm.decoding.fused_modules import fuse
from spqlm.decoding.growing_cache import GrowingLayer
from spqlm.decoding.program import Unsuitable, build
from spqlm.decoding.session import Session, one_more
from spqlm.errors import SpqError
from spqlm.kernels.widening import FEW, arithmetic, widened_products
from spqlm.model.mixins import Mixin, add_mixin, remove_mixin
from spqlm.modules.linear import Compressed
from spqlm.native.decoder import MOST_SEQUENCES

logger = logging.getLogger(__name__)


class Optimized(Mixin, PreTrainedModel):
    """What `optimize` adds to a model's class."""

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> Any:
        """As the model's own, which does whatever is not one more token of each sequence."""
        if input_ids is not None:
            _check(input_ids)
        compiling = torch.compiler.is_compiling()
        plain = (
            compiling
            or inputs_embeds is not None
            or labels is not None
            or torch.is_grad_enabled()
            or self.training
            or use_cache is False
            or self.config.output_hidden_states
            or self.config.output_attentions
            or kwargs.get("return_dict") is False
            or any(
                value is not None and value is not False
                for name, value in kwargs.items()
                if name != "return_dict"
            )
        )
        layers = _growing(past_key_values)
        if layers:
            session: Session = layers[0].owner
            length = layers[0].get_seq_length()
            sequences = None
            if not plain and input_ids is not None:
                sequences = one_more(input_ids, attention_mask, position_ids, length)
            if sequences is not None:
                logits = session.step(self, layers, sequences)
                if logits is not None:
                    return CausalLMOutputWithPast(
                        logits=logits[:, None],
                        past_key_values=past_key_values,
                    )
            else:
                session.reset()
        elif not plain and input_ids is not None and len(input_ids) <= MOST_SEQUENCES:
            past_key_values = _with_growing_layers(self, past_key_values, use_cache)
        # What a processor has is asked by an operator that Dynamo cannot trace.
        many = not compiling and input_ids is not None and input_ids.numel() >= FEW
        widened = many and arithmetic(self.dtype) != self.dtype and _multiplied_by_torch(self)
        with widened_products(self.dtype) if widened else nullcontext():
            return super().forward(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                inputs_embeds=inputs_embeds,
                labels=labels,
                use_cache=use_cache,
                logits_to_keep=logits_to_keep,
                **kwargs,
            )


def _multiplied_by_torch(model: PreTrainedModel) -> bool:
    """Whether matrices in half precision are: dense ones, or those of eager attention.

    Compressed layers widen what they multiply themselves.
    """
    if getattr(model.config, "_attn_implementation", None) == "eager":
        return True
    own = (
        parameter
        for module in model.modules()
        if not isinstance(module, Compressed | nn.Embedding)
        for parameter in module.parameters(recurse=False)
    )
    return any(p.ndim > 1 and p.dtype in (torch.bfloat16, torch.float16) for p in own)


def _check(input_ids: Tensor) -> None:
    if not input_ids.numel():
        raise SpqError(
            f"input_ids is {list(input_ids.shape)}; give one sequence of one token or more"
        )


def _growing(past: Cache | None) -> list[GrowingLayer]:
    layers = past.layers if isinstance(past, Cache) else []
    return [layer for layer in layers if isinstance(layer, GrowingLayer)]


def _with_growing_layers(
    model: PreTrainedModel, past: Cache | None, use_cache: bool | None
) -> Cache | None:
    """Give an empty cache layers that grow in place: the caller's own object, where there is one.

    `generate` goes on with the cache that `forward` returns, or with the one it passed: either way
    it is this one.
    """
    if past is None:
        if not (model.config.use_cache if use_cache is None else use_cache):
            return None
        past = DynamicCache()
    fresh = type(past) is DynamicCache and not past.offloading
    if fresh and not any(getattr(layer, "is_initialized", True) for layer in past.layers):
        session = Session()
        past.layer_class_to_replicate = None
        past.layers = [GrowingLayer(session) for _ in range(model.config.num_hidden_layers)]
    return past


@contextmanager
def optimized(model: PreTrainedModel) -> Iterator[None]:
    """Inside, a model on a CPU is optimised; after, it is as it was."""
    if model.device.type != "cpu" or isinstance(model, Optimized):
        yield
        return
    try:
        optimize(model)
        yield
    finally:
        for module in model.modules():
            remove_mixin(module)
        prompt_attention.leave(model)


def optimize(model: PreTrainedModel) -> PreTrainedModel:
    """Let the model decode without transformers' overhead; it stays the same object.

    On a GPU `generate` records CUDA graphs, see `decode_by_graphs`. On a CPU, from then on one more
    token of up to 64 sequences is computed in one native call. Prompts, larger batches, masks with
    holes, hidden states and so on run in transformers, with norms and gates in one pass each
    (`fuse`) and, in bfloat16 on some processors, native attention (`prompt_attention`); with
    gradients nothing is changed. A model that can never be decoded natively is left as it is, and
    the log says why.
    """
    if isinstance(model, Optimized):
        return model
    if model.device.type == "cuda":
        return decode_by_graphs(model)
    try:
        build(model)
    except Unsuitable as reason:
        logger.warning("decoding stays in plain transformers: %s", reason)
    else:
        add_mixin(model, Optimized)
        fuse(model)
        prompt_attention.use(model)
    return model
