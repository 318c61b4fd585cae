"""What the compiled kernels are given, field by field as in C++; sizes are compared on loading."""

import ctypes
from collections.abc import Iterator
from typing import Any

_WHOLE = ctypes.c_int64


class Matrix(ctypes.Structure):
    """Mirrors `Matrix` in matrix.h.

    Attributes:
        kept: tensors that its addresses are of; a copy inside another structure has none.
    """

    kept: tuple[Any, ...] = ()
    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("rows", _WHOLE),
        ("columns", _WHOLE),
        ("groups", _WHOLE),
        ("format", ctypes.c_int32),
        ("scale_type", ctypes.c_int32),
        ("bias_type", ctypes.c_int32),
        ("coding", ctypes.c_int32),
        ("group_size", ctypes.c_int32),
        ("zero", ctypes.c_void_p),
        ("mask", ctypes.c_void_p),
        ("offsets", ctypes.c_void_p),
    )


class Linear(ctypes.Structure):
    """Mirrors `Linear` in decoder.h: outer · x, or outer · (inner · x)."""

    _fields_ = (("outer", Matrix), ("inner", Matrix))


class Layer(ctypes.Structure):
    """Mirrors `Layer` in decoder.h."""

    _fields_ = (
        *((name, Linear) for name in ("query", "key", "value", "output", "gate", "up", "down")),
        *(
            (name, ctypes.c_void_p)
            for name in ("attention_norm", "mlp_norm", "query_norm", "key_norm", "keys", "values")
        ),
        *((name, _WHOLE) for name in ("query_heads", "key_heads", "window")),
    )


class Decoder(ctypes.Structure):
    """Mirrors `Decoder` in decoder.h."""

    _fields_ = (
        ("layers", ctypes.POINTER(Layer)),
        ("norm", ctypes.c_void_p),
        ("embedding", Matrix),
        ("head", Linear),
        *((name, _WHOLE) for name in ("layer_count", "hidden", "head_width", "capacity")),
        *((name, ctypes.c_void_p) for name in ("cosine", "sine")),
        ("epsilon", ctypes.c_float),
        ("attention_scale", ctypes.c_float),
        ("type", ctypes.c_int32),
        ("count", ctypes.c_int32),
    )


class States(ctypes.Structure):
    """Mirrors `States` in attention.h."""

    _fields_ = (
        ("first", ctypes.c_void_p),
        ("sequence", _WHOLE),
        ("head", _WHOLE),
        ("position", _WHOLE),
    )


class Attention(ctypes.Structure):
    """Mirrors `Attention` in attention.h."""

    _fields_ = (
        ("queries", States),
        ("keys", States),
        ("values", States),
        ("begins", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("log_sums", ctypes.c_void_p),
        ("sequences", _WHOLE),
        ("query_heads", _WHOLE),
        ("key_heads", _WHOLE),
        ("count", _WHOLE),
        ("length", _WHOLE),
        ("width", _WHOLE),
        ("scale", ctypes.c_float),
    )


class AttentionGradient(ctypes.Structure):
    """Mirrors `AttentionGradient` in attention.h."""

    _fields_ = (
        ("attention", Attention),
        *((name, ctypes.c_void_p) for name in ("given", "queries", "keys", "values")),
    )


class Columns(ctypes.Structure):
    """Mirrors `Columns` in columns.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("state", "start", "update", "divisors")),
        *((name, ctypes.c_void_p) for name in ("step", "offset", "kept", "code_at", "level_at")),
        *((name, _WHOLE) for name in ("count", "rows", "lowest", "highest")),
        *((name, ctypes.c_void_p) for name in ("codes", "errors")),
    )


STRUCTURES = (Matrix, Linear, Layer, Decoder, States, Attention, AttentionGradient, Columns)


def matrices(argument: object) -> Iterator[Matrix]:
    """All matrices in a structure, which may be one; none in anything else."""
    if isinstance(argument, Matrix):
        yield argument
    elif isinstance(argument, ctypes.Structure):
        for field in argument._fields_:
            yield from matrices(getattr(argument, field[0]))
        if isinstance(argument, Decoder):
            for layer in argument.layers[: argument.layer_count]:
                yield from matrices(layer)
