"""Which inputs of a linear layer to remove, and how the others make up for them.

The error of removing inputs R of W is priced like any other, ½ Σ_i E[g_i²] (ΔW H ΔWᵀ)_ii. Where the
inputs that stay are refitted, ΔW is the least there is, and the price of one unit is that of the
Optimal Brain Surgeon (Hassibi & Stork, 1993) in this metric.
"""

import torch
from torch import Tensor

from spqlm.numerics.gptq import DAMPING, inverse

# Units that leave between two looks at the scores.
STEP_SHARE = 1 / 64


def elimination_order(
    weight: Tensor,
    hessian: Tensor,
    output: Tensor,
    count: int,
    channels: int = 1,
    damping: float = DAMPING,
) -> Tensor:
    """Greedy order in which units leave, the least missed first.

    Args:
        weight: W [rows, units · channels], the layer that reads the units.
        hessian: H of its inputs.
        output: E[g_i²] of its outputs, [rows].
        count: how many units leave.
        channels: consecutive inputs that make up a unit.
        damping: of H, see `gptq.damped`.

    Returns:
        int64 [count]: distinct units.
    """
    inverted = inverse(hessian, damping)
    weight = output.double().clamp_min(0).sqrt()[:, None] * weight.double()
    # Inputs that never fire cost nothing, though damping makes them look as if they did.
    weight[:, hessian.diagonal() == 0] = 0
    units = weight.shape[1] // channels
    left = torch.ones(units, dtype=torch.bool, device=weight.device)
    step = max(int(units * STEP_SHARE), 1)
    order: list[int] = []
    while len(order) < count:
        scores = _scores(weight, inverted, channels).masked_fill(~left, torch.inf)
        leaving = scores.argsort(stable=True)[: min(step, count - len(order))]
        columns = _columns(leaving, channels)
        lower = torch.linalg.cholesky(inverted[columns][:, columns])
        solved = torch.cholesky_solve(inverted[columns], lower)
        weight.addmm_(weight[:, columns], solved, alpha=-1)
        inverted.addmm_(inverted[:, columns], solved, alpha=-1)
        # Exactly gone; what rounding leaves there must not be divided by.
        weight[:, columns] = 0
        inverted[columns] = 0
        inverted[:, columns] = 0
        inverted[columns, columns] = 1
        left[leaving] = False
        order += leaving.tolist()
    return torch.tensor(order, dtype=torch.int64)


def _scores(weight: Tensor, inverted: Tensor, channels: int) -> Tensor:
    """Twice the price of each unit, with every other one refitted: Σ_i w_u ([H⁻¹]_uu)⁻¹ w_uᵀ.

    It is |L⁻¹ w_uᵀ|², where [H⁻¹]_uu = L Lᵀ. Not by LU, which is wrong for a batch in several
    threads of MKL (pytorch/pytorch#141358).
    """
    if channels == 1:
        return weight.square().sum(0) / inverted.diagonal()
    units = weight.shape[1] // channels
    blocks = inverted.unflatten(0, (units, channels)).unflatten(2, (units, channels))
    own = blocks.diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    parts = weight.unflatten(1, (units, channels)).permute(1, 2, 0)
    lower = torch.linalg.cholesky(own)
    return torch.linalg.solve_triangular(lower, parts, upper=False).square().sum((1, 2))


def _columns(units: Tensor, channels: int) -> Tensor:
    offsets = torch.arange(channels, device=units.device)
    return (units[:, None] * channels + offsets).flatten()


def refit(weight: Tensor, hessian: Tensor, kept: Tensor, damping: float = DAMPING) -> Tensor:
    """The kept inputs' weights that come closest to the whole layer: W H_:K (H_KK)⁻¹.

    Args:
        weight: W [rows, columns].
        hessian: H [columns, columns].
        kept: columns that stay, int64 [kept].
        damping: of H, see `gptq.damped`.

    Returns:
        float32 [rows, kept], least squares in the damped H.
    """
    kept_inverse = inverse(hessian[kept][:, kept], damping)
    removed = torch.ones(len(hessian), dtype=torch.bool, device=hessian.device)
    removed[kept] = False
    moved = weight[:, removed].double() @ hessian[removed][:, kept].double() @ kept_inverse
    return (weight[:, kept].double() + moved).float()
