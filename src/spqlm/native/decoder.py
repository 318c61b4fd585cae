"""A whole decoder as the native decode step sees it: addresses, shapes, and one call a step."""

import ctypes
import operator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from spqlm.native import DTYPES, addressable
from spqlm.native.structures import Decoder as Decoder
from spqlm.native.structures import Layer as Layer
from spqlm.native.structures import Linear as Linear
from spqlm.native.structures import Matrix

WIDEST_HEAD = 512
"""Columns of an attention head that the native step has room for; see decode.cpp."""

MOST_SEQUENCES = 64
"""Sequences that one step can take; MOST_INPUTS in matrix.h."""


@dataclass
class Program:
    """A decoder ready to run.

    Attributes:
        library: that runs it.
        decoder: what is passed to the library.
        dtype: of the model, the cache and the logits.
        held: every tensor that the decoder has the address of.
    """

    library: ctypes.CDLL
    decoder: Decoder
    dtype: torch.dtype
    held: list[Tensor]
    _room: Tensor = field(default_factory=lambda: torch.empty(0))
    _rotary: tuple[Tensor, Tensor] | None = None
    _cache: list[Tensor] = field(default_factory=list)

    def takes(self, cache: list[Tensor]) -> bool:
        """Whether these can be the keys and values of all layers, as `use_cache` wants them."""
        count, _, capacity, _ = cache[0].shape
        layers = self.decoder.layers[: self.decoder.layer_count]
        return count <= MOST_SEQUENCES and all(
            buffer.shape == (count, layers[index // 2].key_heads, capacity, self.decoder.head_width)
            and buffer.dtype == self.dtype
            and addressable(buffer)
            for index, buffer in enumerate(cache)
        )

    def uses(self, cache: list[Tensor]) -> bool:
        """Whether this is the cache, tensor by tensor, that the next step will read."""
        return len(cache) == len(self._cache) and all(map(operator.is_, cache, self._cache))

    def use_cache(self, cache: list[Tensor]) -> None:
        """Write to and read from this cache from now on.

        Args:
            cache: keys and values of the first layer, of the second and so on: [sequences, key
                heads, capacity, head width], contiguous.
        """
        for layer, key, value in zip(
            self.decoder.layers[: len(cache) // 2], cache[::2], cache[1::2], strict=True
        ):
            layer.keys, layer.values = key.data_ptr(), value.data_ptr()
        self.decoder.count, _, self.decoder.capacity, _ = cache[0].shape
        self._cache = cache

    def use_rotary(self, cosine: Tensor, sine: Tensor) -> None:
        """Rotate by these tables, float32 [angles, head width] each, from now on."""
        self.decoder.cosine, self.decoder.sine = cosine.data_ptr(), sine.data_ptr()
        self._rotary = (cosine, sine)

    @property
    def angles(self) -> int:
        """How many positions the rotary tables cover."""
        return 0 if self._rotary is None else len(self._rotary[0])

    def step(self, sequences: Tensor, position: int) -> Tensor:
        """Run one token of each sequence.

        Args:
            sequences: int64 [sequences, 3], contiguous: the token, within the vocabulary; where it
                stands in its text, below `angles`; the first position of the cache that it sees.
            position: of the cache, below its capacity.

        Returns:
            logits of the next tokens, [sequences, vocabulary].

        Raises:
            RuntimeError: the library does not know a format that the decoder has.
        """
        threads = torch.get_num_threads()
        needed = self.library.spq_decode_room(self.decoder, threads)
        if self._room.numel() < needed:
            self._room = torch.empty(needed, dtype=torch.float32)
        logits = torch.empty(len(sequences), self.decoder.head.outer.rows, dtype=self.dtype)
        self.library.spq_decode(
            self.decoder,
            sequences.data_ptr(),
            position,
            self._room.data_ptr(),
            logits.data_ptr(),
            threads,
        )
        return logits


def program(
    library: ctypes.CDLL,
    layers: list[Layer],
    *,
    norm: Tensor,
    embedding: Matrix,
    head: Linear,
    head_width: int,
    epsilon: float,
    attention_scale: float,
    dtype: torch.dtype,
    held: list[Tensor],
) -> Program:
    """Put a decoder together; `use_cache` and `use_rotary` before the first step.

    Args:
        library: the native library.
        layers: first to last.
        norm: weight of the final norm, float32 [hidden].
        embedding: [vocabulary, hidden].
        head: [vocabulary, hidden], perhaps in two factors.
        head_width: columns of an attention head, at most WIDEST_HEAD and even.
        epsilon: of all norms.
        attention_scale: factor on queries.
        dtype: of the model.
        held: tensors that any of these has the address of.
    """
    array = (Layer * len(layers))(*layers)
    decoder = Decoder(
        array,
        norm.data_ptr(),
        embedding,
        head,
        len(layers),
        norm.numel(),
        head_width,
        0,
        None,
        None,
        epsilon,
        attention_scale,
        DTYPES[dtype],
        0,
    )
    return Program(library, decoder, dtype, [*held, norm])
