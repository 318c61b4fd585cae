"""The compiled kernels: finding them, and calling them with tensors.

One library serves every version of PyTorch, because it is called with addresses and knows nothing
of tensors, and every processor, because it holds its kernels for several instruction sets.
"""

import ctypes
import logging
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from spqlm.errors import SpqError
from spqlm.native.interface import compiled_from_these_sources, declare
from spqlm.native.structures import Matrix as Matrix

logger = logging.getLogger(__name__)

INSTRUCTION_SETS = ("amx_bf16", "avx512_bf16", "avx512", "avx2", "portable")
CHOICE = "SPQ_KERNELS"
"""Environment variable: one of INSTRUCTION_SETS, or `reference` for no native kernels."""
REQUIRED = "SPQ_REQUIRE_NATIVE"
"""Environment variable: 1 makes it an error, not a warning, that the library is not there."""
FILE = "SPQ_NATIVE_LIBRARY"
"""Environment variable: another library than the one that installing the package puts beside this
file; it must be compiled from the same sources."""

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""Float types, by their numbers in matrix.h."""

FLOATS = tuple(DTYPES)
_ELEMENTS = (*FLOATS, torch.int8, torch.uint8, torch.int32)


def library_file() -> Path:
    """Where the compiled library is expected."""
    beside = Path(__file__).with_name("_kernels.so")
    return Path(os.environ.get(FILE) or beside)


def library() -> ctypes.CDLL | None:
    """The compiled library, or None; one warning says why there is none.

    None at all while torch.compile traces a model: it makes kernels of its own.

    Raises:
        SpqError: there is none, and SPQ_REQUIRE_NATIVE is 1.
    """
    return None if torch.compiler.is_compiling() else _library()


def _absent(sentence: str, remedy: str) -> None:
    if os.environ.get(REQUIRED) == "1":
        raise SpqError(f"{sentence}, and {REQUIRED}=1 asks for them; {remedy}")
    slow = "so compressed layers run in PyTorch, several times slower"
    logger.warning("%s, %s; %s", sentence, slow, remedy)


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
        why = error if file.exists() else f"no {file.name}"
        _absent(
            f"the native kernels are not there ({why})",
            "install a C++ compiler (GCC or Clang) and then spqlm again",
        )
        return None
    if not compiled_from_these_sources(found):
        _absent(
            f"the native kernels in {file.name} were compiled from other sources",
            "install spqlm again",
        )
        return None
    declare(found)
    if wanted and not found.spq_choose(wanted.encode()):
        logger.warning(
            "%s=%s: this machine has no such kernels, so those for %s are used; there are %s",
            CHOICE,
            wanted,
            instruction_set(found),
            ", ".join(INSTRUCTION_SETS),
        )
    return found


def instruction_set(found: ctypes.CDLL) -> str:
    """The one that the library's kernels run with now."""
    name: bytes = found.spq_instruction_set()
    return name.decode()


def instruction_sets(found: ctypes.CDLL) -> list[str]:
    """Those of INSTRUCTION_SETS that this processor can run, fastest first."""
    return [name for name in INSTRUCTION_SETS if found.spq_runs_here(name.encode())]


def transformed() -> bool:
    """Whether `torch.func` is at work, whose tensors look like others and have no elements.

    Not while torch.compile traces a model, which has it do a part of that.
    """
    if torch.compiler.is_compiling():
        return False
    return torch._C._functorch.peek_interpreter_stack() is not None


def addressable(*tensors: Tensor | None) -> bool:
    """Whether kernels may be given the addresses of these tensors' elements.

    Only ordinary tensors on the CPU whose elements stand in order: no subclass (tracing and
    sharding use some), no slice, no type that the kernels do not know. None at all while
    torch.compile traces a model, for it makes kernels of its own, or within `torch.func`.
    """
    return not (torch.compiler.is_compiling() or transformed()) and all(
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

    Raises:
        RuntimeError: the library does not know a format or a type.
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


def linear_each(
    found: ctypes.CDLL, x: Tensor, matrices: Sequence[Matrix], counts: Sequence[int]
) -> Tensor | None:
    """Rows of input times a matrix of their own, in one call, each as `linear` does.

    Args:
        found: the library.
        x: [n, in], addressable, in a float type.
        matrices: [out, in] each.
        counts: how many consecutive rows are each matrix's; n together.

    Returns:
        [n, out] in the dtype of x, or None where there is no such kernel for one of them.

    Raises:
        RuntimeError: the library does not know a format or a type.
    """
    size = len(matrices)
    y = x.new_empty(len(x), matrices[0].rows)
    places = (ctypes.c_void_p * size)(*map(ctypes.addressof, matrices))
    numbers = (ctypes.c_int64 * size)(*counts)
    address, kind, threads = x.data_ptr(), DTYPES[x.dtype], torch.get_num_threads()
    done = found.spq_linear_each(places, numbers, size, address, kind, y.data_ptr(), threads)
    return y if done else None


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


def linear_int8_inputs(found: ctypes.CDLL, x: Tensor, matrix: Matrix) -> Tensor | None:
    """Many inputs, each rounded to int8 at a scale of its own, times a matrix in int8.

    Args:
        found: the library.
        x: [..., in], addressable, of a float dtype.
        matrix: [out, in], in int8.

    Returns:
        [..., out] in the dtype of x, or None where there is no such kernel.
    """
    y = x.new_empty(*x.shape[:-1], matrix.rows)
    count, threads = x.numel() // matrix.columns, torch.get_num_threads()
    address, dtype = x.data_ptr(), DTYPES[x.dtype]
    done = found.spq_int8_inputs(matrix, address, dtype, count, y.data_ptr(), threads)
    return y if done else None


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
