"""Products of int8 weights with inputs that are rounded to int8."""

import torch
from torch import Tensor

from spqlm.kernels.triton.int8_inputs import int8_by_int8, round_rows
from spqlm.kernels.triton.matrix import cdiv, launchable
from spqlm.kernels.triton.tiles import tile_for
from spqlm.native import FLOATS

WIDEST = 2**17
"""Inputs whose products, of at most 127 * 128 each, add up below 2^31."""


def int8_product(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor | None:
    """Each row of input rounded to nearest at a scale of its own, times the weight, plus bias.

    Args:
        x: [count, in].
        codes: int8 [out, in].
        scale: [out] or [1].
        bias: [out] or None.

    Returns:
        [count, out] in the dtype of x, not differentiable; None where no kernel takes this.
    """
    x = x.contiguous()
    count, (rows, columns) = len(x), codes.shape
    if x.dtype not in FLOATS or not x.numel() or not rows or columns >= WIDEST:
        return None
    if not launchable(x, codes, scale, bias):
        return None
    rounded = torch.empty_like(x, dtype=torch.int8)
    step = x.new_empty(count, dtype=torch.float32)
    y = x.new_empty(count, rows)
    tile = tile_for(rows, count, x.device)
    with torch.cuda.device_of(x):
        round_rows[(count,)](x, rounded, step, columns, BLOCK=1024)
        int8_by_int8[(cdiv(rows, tile.rows), cdiv(count, tile.height))](
            *(rounded, step, codes, scale, bias, y),
            *(count, rows, columns, int(len(scale) > 1)),
            ROWS=tile.rows,
            HEIGHT=tile.height,
            DEPTH=2 * tile.depth,  # Of half as many bytes.
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
    return y
