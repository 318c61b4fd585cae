"""Inputs of GPTQ, and the algorithm as it is told, column by column."""

import functools

import torch
from torch import Tensor

from spqlm.numerics import gptq, integer

ROWS = 16


def round_groups(
    weight: Tensor, hessian: Tensor, group_size: int, bits: int, damping: float = gptq.DAMPING
) -> tuple[Tensor, Tensor]:
    """In a metric that is not factorised."""
    return gptq.round_groups(weight, gptq.inverse_factor(hessian, damping)[0], group_size, bits)


def round_int8(weight: Tensor, hessian: Tensor, scale: Tensor) -> Tensor:
    """The same with the usual damping."""
    return gptq.round_int8(weight, gptq.inverse_factor(hessian)[0], scale)


round_int4 = functools.partial(round_groups, bits=4)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(columns: int, seed: int = 1) -> Tensor:
    """A metric whose channels differ in size and lean on each other; float64."""
    mixing = random(columns, columns, seed=seed).double() / columns**0.5
    mixing = mixing @ torch.diag(torch.linspace(0.1, 2, columns, dtype=torch.float64)) @ mixing
    return mixing @ mixing.T + 0.01 * torch.eye(columns, dtype=torch.float64)


def exact(codes: Tensor, scale: Tensor) -> Tensor:
    return codes.double() * scale.double().repeat_interleave(codes.shape[1] // scale.shape[1], 1)


def cost(error: Tensor, hessian: Tensor) -> float:
    """tr(ΔW H ΔWᵀ) in float64."""
    error = error.double()
    return float(torch.trace(error @ hessian.double() @ error.T))


def to_nearest(weight: Tensor, group_size: int) -> Tensor:
    """Dequantised, float64."""
    scale = integer.search_group_scale(weight, None, group_size)
    return exact(integer.quantize_groups(weight, scale), scale)


def eliminate(weight: Tensor, hessian: Tensor, damping: float, start_column, round_column) -> None:
    """The algorithm as it is told, column by column, in float64, by eliminating from H⁻¹.

    Args:
        weight: [rows, columns]; changed.
        hessian: [columns, columns].
        damping: share of the median of the diagonal.
        start_column: called with the column before it is rounded.
        round_column: from a column's number to its rounded values [rows].
    """
    hessian = hessian.double()
    ridge = damping * float(hessian.diagonal().median())
    inverse = torch.linalg.inv(hessian + ridge * torch.eye(len(hessian), dtype=torch.float64))
    for column in range(len(hessian)):
        start_column(column)
        error = (weight[:, column] - round_column(column)) / inverse[column, column]
        weight[:, column:] -= torch.outer(error, inverse[column, column:])
        step = torch.outer(inverse[:, column], inverse[column]) / inverse[column, column]
        inverse = inverse - step


def pivots(hessian: Tensor, damping: float) -> Tensor:
    """1 / [H⁻¹]_qq at each column's turn."""
    hessian = hessian.double()
    ridge = damping * float(hessian.diagonal().median())
    inverse = torch.linalg.inv(hessian + ridge * torch.eye(len(hessian), dtype=torch.float64))
    found = []
    for column in range(len(hessian)):
        found.append(1 / inverse[column, column])
        step = torch.outer(inverse[:, column], inverse[column]) / inverse[column, column]
        inverse = inverse - step
    return torch.stack(found)


def plain_groups(
    weight: Tensor, hessian: Tensor, group_size: int, bits: int, damping: float
) -> tuple[Tensor, Tensor]:
    weight = weight.double().clone()
    importance = pivots(hessian, damping)
    codes = torch.zeros(weight.shape, dtype=torch.int8)
    scales: list[Tensor] = []
    least, most = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1

    def start(column: int) -> None:
        if column % group_size == 0:
            group = slice(column, column + group_size)
            scales.append(
                integer.search_group_scale(weight[:, group], importance[group], group_size, bits)
            )

    def rounded(column: int) -> Tensor:
        scale = scales[-1][:, 0].double()
        codes[:, column] = (weight[:, column] / scale).round().clamp(least, most).to(torch.int8)
        return codes[:, column] * scale

    eliminate(weight, hessian, damping, start, rounded)
    return codes, torch.cat(scales, 1)


def plain_int8(weight: Tensor, hessian: Tensor, scale: Tensor, damping: float) -> Tensor:
    weight, scale = weight.double().clone(), scale.double()
    codes = torch.zeros(weight.shape, dtype=torch.int8)

    def rounded(column: int) -> Tensor:
        codes[:, column] = (weight[:, column] / scale).round().clamp(-127, 127).to(torch.int8)
        return codes[:, column] * scale

    eliminate(weight, hessian, damping, lambda column: None, rounded)
    return codes
