"""Decoding a token of every sequence in one native call, inside transformers' own `generate`."""

import logging
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from spq.errors import SpqError
from spq.integrations.decoder_program import Unsuitable, build, rotary_table
from spq.integrations.growing_cache import Growing, GrowingLayer
from spq.native.decoder import MOST_SEQUENCES, Program

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

    def step(
        self, model: PreTrainedModel, layers: list[GrowingLayer], sequences: Tensor
    ) -> Tensor | None:
        """One more token of each sequence, or None where the model must do it.

        Args:
            model: that decodes.
            layers: of its cache.
            sequences: as `one_more` gives them.

        Returns:
            logits [sequences, vocabulary].
        """
        if self.refused:
            return None
        position = layers[0].get_seq_length()
        held = [growing for layer in layers for growing in layer.held or ()]
        try:
            program = self._ready(model, held, position)
        except Unsuitable as reason:
            logger.info("this step is decoded in plain transformers: %s", reason)
            self.refused = True
            return None
        least, most = (found.tolist() for found in sequences.aminmax(dim=0))
        known = min(least) >= 0 and most[0] < program.decoder.embedding.rows
        if not known or most[1] > position or len(sequences) != program.decoder.count:
            return None
        logits = program.step(sequences, position)
        for growing in held:
            growing.length += 1
        return logits

    def _ready(self, model: PreTrainedModel, held: list[Growing], position: int) -> Program:
        program = self.program = self.program or build(model)
        if len(held) != 2 * program.decoder.layer_count:
            raise Unsuitable("the cache has another number of layers than the model")
        if any(growing.length != position for growing in held):
            raise Unsuitable("the cache is not filled evenly")
        # It is another one after it has grown, and after its sequences were put in another order.
        cache = [growing.buffer for growing in held]
        if position < program.decoder.capacity and program.uses(cache):
            return program
        for growing in held:
            growing.reserve(position + 1)
        cache = [growing.buffer for growing in held]
        if not program.takes(cache):
            raise Unsuitable("the cache has another shape or dtype than the model's")
        program.use_cache(cache)
        if program.angles < program.decoder.capacity:
            program.use_rotary(*rotary_table(model, program.decoder.capacity))
        return program


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
        """As the model's own, which does whatever is not one more token of each sequence."""
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


def one_more(
    input_ids: Tensor, mask: Tensor | None, position_ids: Tensor | None, length: int
) -> Tensor | None:
    """What the native step is told, where this is one token behind `length` positions of a cache.

    Args:
        input_ids: [sequences, 1], or this is something else.
        mask: [sequences, length + 1] or None; padding may only stand on the left.
        position_ids: [sequences or 1, 1] or None.
        length: positions in the cache.

    Returns:
        int64 [sequences, 3]: the token, where it stands in its text, and the first position in the
        cache that is not padding. None where the native step cannot tell.
    """
    count = len(input_ids)
    if length == 0 or input_ids.shape != (count, 1) or count > MOST_SEQUENCES:
        return None
    sequences = torch.zeros(count, 3, dtype=torch.int64)
    sequences[:, 0] = input_ids[:, 0]
    if position_ids is None:
        sequences[:, 1] = length
    elif position_ids.shape in ((count, 1), (1, 1)):
        sequences[:, 1] = position_ids[:, 0]
    else:
        return None
    if mask is None:
        return sequences
    if mask.shape != (count, length + 1):
        return None
    seen = mask.bool()
    if not seen.all():
        if not (seen[:, -1].all() and (seen[:, :-1] <= seen[:, 1:]).all()):
            return None
        sequences[:, 2] = (~seen).sum(dim=1)
    return sequences


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

    From then on one more token of up to 16 sequences is computed in one native call. Prompts,
    larger batches, masks with holes, gradients, hidden states and so on run in transformers as
    before. A model that can never be decoded natively is left as it is, and the log says why.
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
