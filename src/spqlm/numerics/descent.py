"""Codes and scales that are improved in turn, after GPTQ has found them.

GPTQ rounds each column once, before it knows how those to its right will be rounded. Coordinate
descent goes over the columns again and gives each the code that is best beside all the others
(QuantEase, arXiv 2309.01885); scales follow by least squares. Neither raises tr(ΔW H ΔWᵀ).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from spqlm.numerics.gptq import BLOCK
from spqlm.numerics.integer import LARGEST_SCALE, code_range, round_scale

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
    found = torch.linalg.solve(system + torch.diag_embed(ridge), summed(weight @ hessian))
    usable = (diagonal > 0) & torch.isfinite(found) & (found.abs() <= LARGEST_SCALE)
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
    # A column of the weight lies together: it is what is read and changed.
    steps = scale.repeat_interleave(len(hessian) // scale.shape[1], 1).T.contiguous()
    limits = code_range(bits)
    found = torch.empty_like(codes.T, memory_format=torch.contiguous_format)

    def nearest(column: int, best: Tensor) -> Tensor:
        found[column] = best.div_(steps[column]).round_().clamp_(*limits)
        return found[column] * steps[column]

    descend(weight, codes.T * steps, hessian, nearest)
    return found.T.contiguous()


def descend(
    weight: Tensor, values: Tensor, hessian: Tensor, nearest: Callable[[int, Tensor], Tensor]
) -> None:
    """One pass over the columns, each replaced by what is best beside all others.

    Args:
        weight: float32 [rows, columns].
        values: what stands for it now, float32 [columns, rows]: a column lies together.
        hessian: float32 [columns, columns], positive definite.
        nearest: from a column's number and what its entries would best be, [rows], to what they
            become.
    """
    # Half the gradient of the error by each value, with the sign turned.
    pull = hessian @ (weight.T - values)
    diagonal = hessian.diagonal().tolist()
    for start in range(0, len(values), BLOCK):
        stop = min(start + BLOCK, len(values))
        moved = torch.empty_like(values[start:stop])
        for column in range(start, stop):
            best = values[column] + pull[column] / diagonal[column]
            change = values[column] - nearest(column, best)
            pull[column:stop].addr_(hessian[column:stop, column], change)
            moved[column - start] = change
        pull[stop:].addmm_(hessian[stop:, start:stop], moved)


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
