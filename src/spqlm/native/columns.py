"""Rounding column after column, by the library on a CPU and by Triton on a GPU."""

import ctypes

import torch
from torch import Tensor

from spqlm import native
from spqlm.native.gpu import why_not
from spqlm.native.structures import Columns


def round_columns(
    state: Tensor,
    start: Tensor | None,
    update: Tensor,
    divisors: Tensor,
    floats: tuple[Tensor, Tensor | None],
    kept: Tensor | None,
    levels: tuple[int, int],
    tables: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor] | None:
    """What `numerics.in_order.round_columns` says.

    Args:
        state: float32 [count, rows].
        start: float32 [count, rows], or None.
        update: float32 [count, count].
        divisors: float32 [count].
        floats: step and offset, float32 [rows] each.
        kept: bool [count, rows], or None.
        levels: the lowest and the highest, at most 2^20 away from 0.
        tables: int32 codes and float32 levels of what is nearest, by halves from the lowest level
            on; None where levels are one apart.

    Returns:
        int16 codes and float32 errors, [count, rows] each, or None where there are no kernels.
    """
    mask = None if kept is None else kept.view(torch.uint8)
    given = (state, start, update, divisors, *floats, mask, *(tables or (None, None)))
    parts = [None if part is None else part.contiguous() for part in given]
    return _on_cpu(parts, levels) if state.is_cpu else _on_gpu(parts, levels)


def _on_cpu(parts: list[Tensor | None], levels: tuple[int, int]) -> tuple[Tensor, Tensor] | None:
    library, state = native.library(), parts[0]
    if library is None or state is None or not native.addressable(*parts):
        return None
    codes, errors = torch.empty(state.shape, dtype=torch.int16), torch.empty(state.shape)
    places = [None if part is None else part.data_ptr() for part in parts]
    made = codes.data_ptr(), errors.data_ptr()
    columns = Columns(*places, *state.shape, *levels, *made)
    library.spq_round_columns(ctypes.byref(columns), torch.get_num_threads())
    return codes, errors


def _on_gpu(parts: list[Tensor | None], levels: tuple[int, int]) -> tuple[Tensor, Tensor] | None:
    state = parts[0]
    if state is None or why_not(state.device.type) is not None:
        return None
    from spqlm.native import columns_triton

    return columns_triton.round_columns(parts, levels)
