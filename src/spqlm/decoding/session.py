"""The native decoder behind one cache, and what it is told for each token."""

import logging
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from spqlm.decoding.growing_cache import Growing, GrowingLayer
from spqlm.decoding.padding import left_padding
from spqlm.decoding.program import Unsuitable, build, rotary_table
from spqlm.native.decoder import MOST_SEQUENCES, Program

logger = logging.getLogger(__name__)


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
    if not mask.all():
        padding = left_padding(mask)
        if padding is None:
            return None
        sequences[:, 2] = padding
    return sequences


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
