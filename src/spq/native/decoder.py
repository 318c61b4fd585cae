"""A whole decoder as the native decode step sees it: addresses, shapes, and one call a token."""

import ctypes
from dataclasses import dataclass, field

import torch
from torch import Tensor

from spq.native import FORMATS, Matrix, addressable

WIDEST_HEAD = 512
"""Columns of an attention head that the native step has room for; see decode.cpp."""


class Linear(ctypes.Structure):
    """Mirrors `Linear` in decode.cpp: outer · x, or outer · (inner · x)."""

    _fields_ = (("outer", Matrix), ("inner", Matrix))


class Layer(ctypes.Structure):
    """Mirrors `Layer` in decode.cpp."""

    _fields_ = (
        *((name, Linear) for name in ("query", "key", "value", "output", "gate", "up", "down")),
        *(
            (name, ctypes.c_void_p)
            for name in ("attention_norm", "mlp_norm", "query_norm", "key_norm", "keys", "values")
        ),
        *((name, ctypes.c_int64) for name in ("query_heads", "key_heads", "window")),
    )


class Decoder(ctypes.Structure):
    """Mirrors `Decoder` in decode.cpp."""

    _fields_ = (
        ("layers", ctypes.POINTER(Layer)),
        ("norm", ctypes.c_void_p),
        ("embedding", Matrix),
        ("head", Linear),
        *((name, ctypes.c_int64) for name in ("layer_count", "hidden", "head_width", "capacity")),
        ("epsilon", ctypes.c_float),
        ("attention_scale", ctypes.c_float),
        ("type", ctypes.c_int32),
        ("unused", ctypes.c_int32),
    )


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
    _cosine: Tensor = field(default_factory=lambda: torch.empty(0))
    _sine: Tensor = field(default_factory=lambda: torch.empty(0))

    def takes(self, index: int, buffer: Tensor) -> bool:
        """Whether `buffer` can be the keys or the values of layer `index`."""
        heads = self.decoder.layers[index].key_heads
        shape = (1, heads, buffer.shape[2], self.decoder.head_width)
        return buffer.shape == shape and buffer.dtype == self.dtype and addressable(buffer)

    def use_cache(
        self, keys: list[Tensor], values: list[Tensor], cosine: Tensor, sine: Tensor
    ) -> None:
        """Write to and read from this cache from now on.

        Args:
            keys: for each layer [1, key heads, capacity, head width], contiguous.
            values: the same.
            cosine: of the rotary embedding, float32 [capacity, head width].
            sine: the same.
        """
        for layer, key, value in zip(self.decoder.layers[: len(keys)], keys, values, strict=True):
            layer.keys, layer.values = key.data_ptr(), value.data_ptr()
        self.decoder.capacity = len(cosine)
        self._cosine, self._sine = cosine, sine

    def step(self, token: int, position: int) -> Tensor:
        """Run one token.

        Args:
            token: id, within the vocabulary.
            position: where it stands, below the cache's capacity.

        Returns:
            logits of the next token, [vocabulary].
        """
        threads = torch.get_num_threads()
        needed = self.library.spq_decode_room(self.decoder, threads)
        if self._room.numel() < needed:
            self._room = torch.empty(needed, dtype=torch.float32)
        logits = torch.empty(self.decoder.head.outer.rows, dtype=self.dtype)
        offset = 4 * position * self.decoder.head_width
        self.library.spq_decode(
            self.decoder,
            token,
            position,
            self._cosine.data_ptr() + offset,
            self._sine.data_ptr() + offset,
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
    """Put a decoder together; `use_cache` before the first step.

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
    pointer, whole = ctypes.c_void_p, ctypes.c_int64
    library.spq_decode_room.argtypes = [ctypes.POINTER(Decoder), ctypes.c_int32]
    library.spq_decode_room.restype = whole
    library.spq_decode.restype = None
    library.spq_decode.argtypes = [
        ctypes.POINTER(Decoder),
        *(whole, whole, pointer, pointer, pointer, pointer),
        ctypes.c_int32,
    ]
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
        epsilon,
        attention_scale,
        FORMATS[dtype],
    )
    return Program(library, decoder, dtype, [*held, norm])
