"""Codes and scales that are improved in turn, after GPTQ has found them.

GPTQ rounds each column once, before it knows how those to its right will be rounded. Coordinate
descent goes over the columns again and gives each the code that is best beside all the others
(QuantEase, arXiv 2309.01885); scales follow by least squares. Neither raises tr(ΔW H ΔWᵀ).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from spqlm.numerics import in_order
from spqlm.numerics.blocks import Grid, even_grid
from spqlm.numerics.in_order import Affine
from spqlm.numerics.integer import LARGEST_SCALE, round_scale

# Scales, then codes. Three rounds get most of what there is.
ROUNDS = 3
# Of its diagonal, added to the system of a row's scales.
RIDGE = 1e-5


def improve_groups(
    weight: Tensor, codes: Tensor, scale: Tensor, hessian: Tensor, bits: int
) -> tuple[Tensor, Tensor]:
    """Better codes and scales of groups.

    Args:
        weight: [rows, columns].
        codes: int8 [rows, columns] in `code_range(bits)`.
        scale: float32 [rows, groups], of either sign, not zero.
        hessian: metric of errors [columns, columns], positive definite.
        bits: of a code, 2 to 7.

    Returns:
        as they were given.
    """
    weight, hessian = weight.float(), hessian.float()
    for _ in range(ROUNDS):
        scale = best_scales(weight, codes, scale, hessian)
        codes = best_codes(weight, codes, scale, hessian, bits)
    return codes, scale


def best_scales(weight: Tensor, codes: Tensor, scale: Tensor, hessian: Tensor) -> Tensor:
    """Scales of least error at these codes, rounded to what they are stored as.

    A row's error is quadratic in its scales: s solves (C H Cᵀ) s = C H w, where row a of C holds
    the codes of group a and zeros elsewhere. A group of nothing but zeros keeps its scale.

    Args:
        weight: float32 [rows, columns].
        codes: int8 [rows, columns].
        scale: float32 [rows, groups].
        hessian: float32 [columns, columns].

    Returns:
        float32 [rows, groups].
    """
    groups = scale.shape[1]
    size = len(hessian) // groups
    held = codes.float()

    def summed(values: Tensor) -> Tensor:
        return (values * held).unflatten(1, (groups, size)).sum(2)

    parts = zip(held.split(size, 1), hessian.split(size), strict=True)
    system = torch.stack([summed(some @ rows) for some, rows in parts], 1)
    diagonal = system.diagonal(dim1=1, dim2=2)
    ridge = RIDGE * diagonal + (diagonal == 0)
    # By Cholesky: LU of a batch is wrong in several threads of MKL (pytorch/pytorch#141358).
    lower, failed = torch.linalg.cholesky_ex(system + torch.diag_embed(ridge))
    found = torch.cholesky_solve(summed(weight @ hessian).unsqueeze(2), lower).squeeze(2)
    usable = (diagonal > 0) & torch.isfinite(found) & (found.abs() <= LARGEST_SCALE)
    usable &= failed[:, None] == 0
    return round_scale(torch.where(usable, found, scale))


def best_codes(weight: Tensor, codes: Tensor, scale: Tensor, hessian: Tensor, bits: int) -> Tensor:
    """Codes after one pass over the columns, each given its best code beside the others'.

    Args:
        weight: float32 [rows, columns].
        codes: int8 [rows, columns] to start from.
        scale: float32 [rows, groups].
        hessian: float32 [columns, columns].
        bits: of a code.

    Returns:
        int8 [rows, columns].
    """
    grid = even_grid(bits, len(hessian) // scale.shape[1])
    steps = scale.T.contiguous()
    values = codes.T * steps.repeat_interleave(grid.group, 0)
    found = descend(weight, values, hessian, grid, lambda group: Affine(steps[group]))
    return found.add_(grid.levels[0]).to(torch.int8)


def descend(
    weight: Tensor, values: Tensor, hessian: Tensor, grid: Grid, affine: Callable[[int], Affine]
) -> Tensor:
    """Codes after one pass over the columns, each given what is best beside all others.

    Args:
        weight: float32 [rows, columns].
        values: what stands for it now, float32 [columns, rows]: a column lies together.
        hessian: float32 [columns, columns], positive definite.
        grid: of the codes.
        affine: from a group's number to what its codes stand for.

    Returns:
        codes from 0 on, int16 [rows, columns].
    """
    diagonal = hessian.diagonal()
    # What each column would best be beside the others as they are. One that changes takes its part
    # of the gradient from those behind it.
    best = (hessian @ (weight.T - values)).div_(diagonal[:, None]).add_(values)
    codes = torch.empty_like(best, dtype=torch.int16)
    ones = torch.ones_like(diagonal)

    def update(earlier: slice, later: slice) -> Tensor:
        return hessian[earlier, later] / -diagonal[later]

    def replace(piece: slice) -> Tensor:
        codes[piece], moved = in_order.round_columns(
            best[piece],
            update(piece, piece),
            ones[piece],
            grid,
            affine(piece.start // grid.group),
            values[piece],
        )
        return moved

    in_order.sweep(best, update, grid.group, grid.group, replace)
    return codes.T.contiguous()


def best_values(weight: Tensor, values: Tensor, hessian: Tensor) -> Tensor:
    """What each entry would best be beside the others as they are, whatever codes there are.

    Entries near the border of their code's cell lose little by the next code.

    Args:
        weight: float32 [rows, columns].
        values: float32 [rows, columns] that stand for it.
        hessian: float32 [columns, columns], with a positive diagonal.

    Returns:
        float32 [rows, columns].
    """
    return values + (weight - values) @ hessian / hessian.diagonal()
