"""The compiled library's functions as ctypes sees them, and whether it is the one for this code."""

import ctypes
from pathlib import Path
from typing import Any

from spqlm.native.fingerprint import fingerprint
from spqlm.native.structures import STRUCTURES, Decoder, Matrix, matrices


def compiled_from_these_sources(found: ctypes.CDLL) -> bool:
    """Whether a library was, and its structures are as large as those here."""
    # Libraries of earlier versions have neither function.
    if not hasattr(found, "spq_fingerprint") or not hasattr(found, "spq_size_of"):
        return False
    found.spq_fingerprint.restype = ctypes.c_char_p
    found.spq_size_of.argtypes, found.spq_size_of.restype = [ctypes.c_char_p], ctypes.c_int64
    expected = fingerprint(Path(__file__).parent).encode()
    return found.spq_fingerprint() == expected and all(
        found.spq_size_of(structure.__name__.encode()) == ctypes.sizeof(structure)
        for structure in STRUCTURES
    )


def _refuse_unknown(status: Any, function: Any, arguments: Any) -> Any:
    """What every call passes its `Status` of exported.h through, or its size."""
    if status >= 0:
        return status
    codes = {
        f"format {matrix.format} (coding {matrix.coding}, groups of {matrix.group_size}, scales of "
        f"type {matrix.scale_type}, bias of type {matrix.bias_type})"
        for argument in arguments
        for matrix in matrices(argument)
    }
    raise RuntimeError(
        f"{function.__name__} of the native kernels knows only some codes of formats and types, "
        f"and was given {', '.join(sorted(codes)) or 'another type'}"
    )


def declare(found: ctypes.CDLL) -> None:
    """Tell ctypes what the library's functions take and return.

    Of those that are given formats or types, calls raise RuntimeError where it does not know one.
    """
    pointer, whole, small = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
    matrix = ctypes.POINTER(Matrix)
    found.spq_instruction_set.restype = ctypes.c_char_p
    found.spq_choose.argtypes = found.spq_runs_here.argtypes = [ctypes.c_char_p]
    found.spq_linear.argtypes = [matrix, matrix, pointer, small, whole, pointer, small]
    found.spq_linear_each.argtypes = [pointer, pointer, whole, pointer, small, pointer, small]
    found.spq_sparse_linear.argtypes = [matrix, pointer, small, whole, pointer, small, small]
    found.spq_dequantize.argtypes = [matrix, whole, whole, pointer, small, small]
    found.spq_normalize.argtypes = [
        pointer,
        small,
        whole,
        whole,
        pointer,
        ctypes.c_float,
        pointer,
        small,
    ]
    found.spq_gated.argtypes = [pointer, pointer, small, whole, pointer, small]
    found.spq_many.argtypes = [matrix, pointer, whole, pointer, small]
    found.spq_int8_inputs.argtypes = [matrix, pointer, small, whole, pointer, small]
    found.spq_gram.argtypes = [pointer, pointer, whole, whole, pointer, small]
    found.spq_attention.argtypes = found.spq_attention_gradient.argtypes = [pointer, small]
    found.spq_round_columns.argtypes = [pointer, small]
    decoder = ctypes.POINTER(Decoder)
    found.spq_decode_room.argtypes, found.spq_decode_room.restype = [decoder, small], whole
    found.spq_decode.argtypes = [decoder, pointer, whole, pointer, pointer, small]
    products = ("linear", "linear_each", "sparse_linear", "many", "int8_inputs")
    for name in (*products, "dequantize", "normalize", "gated"):
        getattr(found, f"spq_{name}").errcheck = _refuse_unknown
    found.spq_decode.errcheck = found.spq_decode_room.errcheck = _refuse_unknown
