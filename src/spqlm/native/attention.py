"""Attention of a prompt on the CPU, without the scores ever going to memory."""

import ctypes

import torch
from torch import Tensor

from spqlm import native
from spqlm.native.structures import Attention, States


def available() -> bool:
    """Whether the kernels of this processor have it at all.

    With AMX they do not: what PyTorch's attention does there has not been measured beside it.
    """
    library = native.library()
    return library is not None and native.instruction_set(library) == "avx512_bf16"


def causal(
    query: Tensor, key: Tensor, value: Tensor, begins: Tensor, scale: float
) -> Tensor | None:
    """softmax(scale q kᵀ) v over the positions up to each query's own, summed in float32.

    Args:
        query: bfloat16 [sequences, query heads, count, width], of the last positions.
        key: bfloat16 [sequences, key heads, length, width]; query heads share them evenly.
        value: as key.
        begins: int32 [sequences]: the first position that is not padding.
        scale: of the scores.

    Returns:
        [sequences, count, query heads, width], zero where a query sees nothing; not differentiable.
        None where there is no such kernel or the tensors do not suit it.
    """
    library = native.library()
    if library is None or not _suit(query, key, value):
        return None
    if begins.shape != query.shape[:1] or begins.dtype != torch.int32 or not begins.is_contiguous():
        return None
    sequences, heads, count, width = query.shape
    out = query.new_empty(sequences, count, heads, width)
    described = Attention(
        *map(_states, (query, key, value)),
        begins.data_ptr(),
        out.data_ptr(),
        sequences,
        heads,
        key.shape[1],
        count,
        key.shape[2],
        width,
        scale,
    )
    return out if library.spq_attention(ctypes.byref(described), torch.get_num_threads()) else None


def _suit(query: Tensor, key: Tensor, value: Tensor) -> bool:
    if torch.compiler.is_compiling() or key.shape != value.shape or not query.numel():
        return False
    if (query.shape[0], query.shape[3]) != (key.shape[0], key.shape[3]):
        return False
    return (
        query.shape[1] % key.shape[1] == 0
        and query.shape[2] <= key.shape[2]
        and all(
            type(x) is Tensor and x.is_cpu and x.dtype == torch.bfloat16 and x.stride(3) == 1
            for x in (query, key, value)
        )
    )


def _states(x: Tensor) -> States:
    return States(x.data_ptr(), *x.stride()[:3])
