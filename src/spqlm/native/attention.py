"""Attention of a prompt on the CPU, without the scores ever going to memory."""

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from spqlm import native
from spqlm.native.structures import Attention, AttentionGradient, States


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
        [sequences, count, query heads, width], zero where a query sees nothing; differentiable once
        in query, key and value. None where there is no such kernel or the tensors do not suit it.
    """
    library = native.library()
    if library is None or not _suit(query, key, value):
        return None
    if begins.shape != query.shape[:1] or begins.dtype != torch.int32 or not begins.is_contiguous():
        return None
    wanted = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    log_sums = query.new_empty(query.shape[:3], dtype=torch.float32) if wanted else None
    sequences, heads, count, width = query.shape
    out = query.new_empty(sequences, count, heads, width)
    described = _described(query, key, value, begins, scale, out, log_sums)
    if not library.spq_attention(ctypes.byref(described), torch.get_num_threads()):
        return None
    if wanted:
        out = _Differentiable.apply(query, key, value, begins, scale, out, log_sums)
    return out


class _Differentiable(torch.autograd.Function):
    """What attention gave, with its gradient, for which weights are computed again."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        query, key, value, begins, scale, out, log_sums = arguments
        ctx.save_for_backward(query, key, value, begins, out, log_sums)
        ctx.scale = scale
        found: Tensor = out.view_as(out)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, begins, out, log_sums = ctx.saved_tensors
        given = gradients[0].contiguous()
        sequences, heads, _, width = query.shape
        of_query = query.new_empty(query.shape)
        shape = sequences, key.shape[1], heads // key.shape[1], key.shape[2], width
        of_key, of_value = (key.new_empty(shape, dtype=torch.float32) for _ in range(2))
        described = AttentionGradient(
            _described(query, key, value, begins, ctx.scale, out, log_sums),
            *(tensor.data_ptr() for tensor in (given, of_query, of_key, of_value)),
        )
        library = native.library()
        assert library is not None
        if not library.spq_attention_gradient(ctypes.byref(described), torch.get_num_threads()):
            raise RuntimeError("the kernels that attended are not those that are chosen now")
        shared = (of.sum(2).to(key.dtype) for of in (of_key, of_value))
        return of_query, *shared, None, None, None, None


def _described(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    begins: Tensor,
    scale: float,
    out: Tensor,
    log_sums: Tensor | None,
) -> Attention:
    sequences, heads, count, width = query.shape
    return Attention(
        *map(_states, (query, key, value)),
        begins.data_ptr(),
        out.data_ptr(),
        None if log_sums is None else log_sums.data_ptr(),
        sequences,
        heads,
        key.shape[1],
        count,
        key.shape[2],
        width,
        scale,
    )


def _suit(query: Tensor, key: Tensor, value: Tensor) -> bool:
    if torch.compiler.is_compiling() or native.transformed():
        return False
    if key.shape != value.shape or not query.numel():
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
