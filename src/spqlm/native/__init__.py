"""The compiled kernels: finding them, and calling them with tensors.

One library serves every version of PyTorch, because it is called with addresses and knows nothing
of tensors, and every processor, because it holds its kernels for several instruction sets.
"""

import ctypes
import logging
import os
import sysconfig
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

INTERFACE = 8
"""What `spq_interface` of the library must return: see library.cpp."""

INSTRUCTION_SETS = ("amx_bf16", "avx512_bf16", "avx512", "avx2", "portable")
CHOICE = "SPQ_KERNELS"
"""Environment variable: one of INSTRUCTION_SETS, or `reference` for no native kernels."""

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""Float types, by their numbers in matrix.h."""

FLOATS = tuple(DTYPES)
_ELEMENTS = (*FLOATS, torch.int8, torch.uint8, torch.int32)


class Matrix(ctypes.Structure):
    """Mirrors `Matrix` in matrix.h."""

    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("groups", ctypes.c_int64),
        ("format", ctypes.c_int32),
        ("scale_type", ctypes.c_int32),
        ("bias_type", ctypes.c_int32),
        ("group_size", ctypes.c_int32),
        ("zero", ctypes.c_void_p),
        ("mask", ctypes.c_void_p),
        ("offsets", ctypes.c_void_p),
    )


def library_file() -> Path:
    """Where installing the package puts the compiled library."""
    return Path(__file__).with_name(f"_kernels{sysconfig.get_config_var('EXT_SUFFIX')}")


def library() -> ctypes.CDLL | None:
    """The compiled library, or None; one warning says why there is none.

    None at all while torch.compile traces a model: it makes kernels of its own.
    """
    return None if torch.compiler.is_compiling() else _library()


@cache
def _library() -> ctypes.CDLL | None:
    wanted = os.environ.get(CHOICE, "")
    if wanted == "reference":
        return None
    file = library_file()
    try:
        # PyTorch is imported above, so its OpenMP library is the one whose threads are used.
        found = ctypes.CDLL(str(file))
    except OSError as error:
        logger.warning(
            "the native kernels are not there (%s), so compressed layers run in PyTorch, slower; "
            "install a C++ compiler and then spqlm again",
            error if file.exists() else f"no {file.name}",
        )
        return None
    if found.spq_interface() != INTERFACE:
        logger.warning(
            "%s was compiled from other sources, so compressed layers run in PyTorch, slower; "
            "install spqlm again",
            file.name,
        )
        return None
    _declare(found)
    if wanted and not found.spq_choose(wanted.encode()):
        logger.warning(
            "%s=%s: this machine has no such kernels, so those for %s are used; there are %s",
            CHOICE,
            wanted,
            instruction_set(found),
            ", ".join(INSTRUCTION_SETS),
        )
    return found


def _declare(found: ctypes.CDLL) -> None:
    pointer, whole, small = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
    matrix = ctypes.POINTER(Matrix)
    found.spq_instruction_set.restype = ctypes.c_char_p
    found.spq_choose.argtypes = [ctypes.c_char_p]
    found.spq_linear.argtypes = [matrix, matrix, pointer, small, whole, pointer, small]
    found.spq_linear.restype = None
    found.spq_sparse_linear.argtypes = [matrix, pointer, small, whole, pointer, small, small]
    found.spq_sparse_linear.restype = None
    found.spq_dequantize.argtypes = [matrix, whole, whole, pointer, small, small]
    found.spq_dequantize.restype = None
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
    for function in (found.spq_normalize, found.spq_gated):
        function.restype = None
    found.spq_many.argtypes = [matrix, pointer, whole, pointer, small]
    found.spq_gram.argtypes = [pointer, pointer, whole, whole, pointer, small]
    found.spq_attention.argtypes = [pointer, small]


def instruction_set(found: ctypes.CDLL) -> str:
    """The one that the library's kernels run with now."""
    name: bytes = found.spq_instruction_set()
    return name.decode()


def addressable(*tensors: Tensor | None) -> bool:
    """Whether kernels may be given the addresses of these tensors' elements.

    Only ordinary tensors on the CPU whose elements stand in order: no subclass (tracing and
    sharding use some), no slice, no type that the kernels do not know. None at all while
    torch.compile traces a model: it makes kernels of its own.
    """
    return not torch.compiler.is_compiling() and all(
        tensor is None
        or (
            type(tensor) in (Tensor, nn.Parameter)
            and tensor.is_cpu
            and tensor.dtype in _ELEMENTS
            and tensor.is_contiguous()
        )
        for tensor in tensors
    )


def linear(found: ctypes.CDLL, x: Tensor, matrix: Matrix, inner: Matrix | None = None) -> Tensor:
    """Inputs times a matrix, or times two in turn, summed in float32.

    Args:
        found: the library.
        x: [..., in], addressable, in a float type.
        matrix: [out, in], or with an inner one [out, rank].
        inner: [rank, in].

    Returns:
        [..., out] in the dtype of x.
    """
    y = x.new_empty(*x.shape[:-1], matrix.rows)
    count = y.numel() // matrix.rows
    found.spq_linear(
        matrix,
        inner,
        x.data_ptr(),
        DTYPES[x.dtype],
        count,
        y.data_ptr(),
        torch.get_num_threads(),
    )
    return y


def linear_many(found: ctypes.CDLL, x: Tensor, matrix: Matrix) -> Tensor | None:
    """Many inputs in bfloat16 times a matrix, which becomes bfloat16 a few rows at a time.

    Args:
        found: the library.
        x: [..., in], addressable, in bfloat16.
        matrix: [out, in].

    Returns:
        [..., out] in bfloat16, or None where there is no such kernel.
    """
    y = x.new_empty(*x.shape[:-1], matrix.rows)
    count = x.numel() // matrix.columns
    address, threads = x.data_ptr(), torch.get_num_threads()
    return y if found.spq_many(matrix, address, count, y.data_ptr(), threads) else None


def dequantize(found: ctypes.CDLL, matrix: Matrix, first: int, last: int, out: Tensor) -> None:
    """Write the rows first <= row < last of a matrix into `out`, [at least last - first, in]."""
    found.spq_dequantize(
        matrix, first, last, out.data_ptr(), DTYPES[out.dtype], torch.get_num_threads()
    )


def add_gram(found: ctypes.CDLL, total: Tensor, x: Tensor, factors: Tensor) -> bool:
    """Add Σ f² x xᵀ to the entries on and above the diagonal; f x is rounded to bfloat16.

    Args:
        found: the library.
        total: float32 [n, n], addressable, changed in place; below the diagonal it means nothing.
        x: bfloat16 [count, n], addressable.
        factors: f, float32 [count], addressable.

    Returns:
        whether there is such a kernel; else nothing happened.
    """
    arguments = (x.data_ptr(), factors.data_ptr(), *x.shape, total.data_ptr())
    return bool(found.spq_gram(*arguments, torch.get_num_threads()))
