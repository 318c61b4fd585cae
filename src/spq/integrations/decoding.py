"""Decoding one token at a time in one native call, inside transformers' own `generate`."""

import logging
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from spq.errors import SpqError
from spq.integrations.decoder_program import Unsuitable, build, rotary_table
from spq.integrations.growing_cache import GrowingLayer
from spq.native.decoder import Program

logger = logging.getLogger(__name__)


class Session:
    """The native decoder of one cache; made anew after every call that transformers ran.

    Nothing that happens to the model between two prompts goes unnoticed that way, and nothing is
    asked of the model for each token.
    """

    def __init__(self) -> None:
        """Nothing is built before the first token."""
        self.program: Program | None = None
        self.refused = False

    def __deepcopy__(self, memo: dict[int, Any]) -> "Session":
        """A copied cache has a session of its own."""
        return Session()

    def reset(self) -> None:
        """Forget the decoder: the model or the cache may have changed."""
        self.program, self.refused = None, False

    def step(self, model: PreTrainedModel, layers: list[GrowingLayer], token: int) -> Tensor | None:
        """Logits [vocabulary] of the token after `token`, or None where the model must do it."""
        if self.refused:
            return None
        position = layers[0].get_seq_length()
        if self.program is None or position >= self.program.decoder.capacity:
            try:
                self._prepare(model, layers, position)
            except Unsuitable as reason:
                logger.info("this token is decoded in plain transformers: %s", reason)
                self.refused = True
                return None
        assert self.program is not None
        if not 0 <= token < self.program.decoder.embedding.rows:
            return None
        logits = self.program.step(token, position)
        for layer in layers:
            assert layer.held is not None
            for growing in layer.held:
                growing.length += 1
        return logits

    def _prepare(self, model: PreTrainedModel, layers: list[GrowingLayer], position: int) -> None:
        if self.program is None:
            self.program = build(model)
        keys: list[Tensor] = []
        values: list[Tensor] = []
        for index, layer in enumerate(layers):
            if layer.held is None or any(growing.length != position for growing in layer.held):
                raise Unsuitable("the cache is not filled evenly")
            for growing, buffers in zip(layer.held, (keys, values), strict=True):
                growing.reserve(position + 1)
                buffers.append(growing.buffer)
                if not self.program.takes(index, growing.buffer):
                    raise Unsuitable("the cache has another shape or dtype than the model's")
        capacity = min(buffer.shape[2] for buffer in keys + values)
        if any(buffer.shape[2] != capacity for buffer in keys + values):
            raise Unsuitable("the cache has different room in different layers")
        self.program.use_cache(keys, values, *rotary_table(model, capacity))


class NativeDecoding(PreTrainedModel):
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
        """As the model's own, which does whatever is not one more token of one sequence."""
        if input_ids is not None:
            _check(self, input_ids, past_key_values)
        plain = (
            inputs_embeds is not None
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
            if not plain and _one_more(input_ids, attention_mask, position_ids, length):
                logits = session.step(self, layers, int(input_ids))  # type: ignore[arg-type]
                if logits is not None:
                    return CausalLMOutputWithPast(
                        logits=logits[None, None],
                        past_key_values=past_key_values,
                    )
            else:
                session.reset()
        elif not plain and input_ids is not None and len(input_ids) == 1:
            past_key_values = _with_room(self, past_key_values, use_cache)
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

    def __reduce__(self) -> Any:
        """Pickle by the class of transformers; the one made here cannot be found by its name."""
        return _blank, (type(self).__bases__[1],), self.__getstate__()


def _blank(base: type[Any]) -> Any:
    """What unpickling fills in."""
    made: Any = _decoding(base)
    return made.__new__(made)


def _check(model: PreTrainedModel, input_ids: Tensor, past: Cache | None) -> None:
    if not input_ids.numel():
        raise SpqError(
            f"input_ids is {list(input_ids.shape)}; give one sequence of one token or more"
        )
    length = input_ids.shape[-1] + (past.get_seq_length() if isinstance(past, Cache) else 0)
    context = model.config.max_position_embeddings
    if length > context:
        raise SpqError(
            f"{length} tokens are more than the model's context of {context}; "
            f"shorten the prompt or write fewer new tokens"
        )


def _growing(past: Cache | None) -> list[GrowingLayer]:
    layers = past.layers if isinstance(past, Cache) else []
    return [layer for layer in layers if isinstance(layer, GrowingLayer)]


def _one_more(
    input_ids: Tensor | None, mask: Tensor | None, position_ids: Tensor | None, length: int
) -> bool:
    """Whether this is one token behind `length` others, none of them masked."""
    return (
        length > 0
        and input_ids is not None
        and input_ids.shape == (1, 1)
        and (position_ids is None or (position_ids.numel() == 1 and int(position_ids) == length))
        and (mask is None or (mask.shape == (1, length + 1) and bool(mask.all())))
    )


def _with_room(model: PreTrainedModel, past: Cache | None, use_cache: bool | None) -> Cache | None:
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


_CLASSES: dict[type[Any], type[Any]] = {}


def _decoding(base: type[Any]) -> type[Any]:
    # The name stays: it is what `save_pretrained` writes as the architecture.
    if base not in _CLASSES:
        fields = {"__module__": base.__module__}
        _CLASSES[base] = type(base.__name__, (NativeDecoding, base), fields)
    return _CLASSES[base]


def optimize(model: PreTrainedModel) -> PreTrainedModel:
    """Let the model decode natively wherever it can; it stays the same object.

    From then on one more token of a single sequence is computed in one native call. Prompts,
    batches, masks with holes, gradients, hidden states and so on run in transformers as before. A
    model that can never be decoded natively is left as it is, and the log says why.
    """
    if isinstance(model, NativeDecoding):
        return model
    try:
        build(model)
    except Unsuitable as reason:
        logger.warning("decoding stays in plain transformers: %s", reason)
    else:
        model.__class__ = _decoding(type(model))
    return model
