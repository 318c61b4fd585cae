"""Ways to store a weight: integers, or integers of two thin factors; how each is made."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from spqlm.numerics import gptq, group_pruning, group_sparse, integer, low_rank
from spqlm.numerics.metric import Metric

Rounding = Literal["nearest", "gptq"]


class Option(BaseModel):
    """A way to store a weight.

    Attributes:
        bits: of a code; 16 keeps the weight in the model's own dtype.
        group_size: inputs that share a scale; None for one scale per output channel.
        rank: of two factors that are stored this way; None for the weight itself.
        sparsity: share of the groups that are not stored; None stores all, without an index.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    bits: Literal[4, 8, 16]
    group_size: int | None = None
    rank: int | None = None
    sparsity: float | None = None

    @property
    def plain(self) -> bool:
        """Whether the weight itself is stored, all of it."""
        return self.rank is None and self.sparsity is None

    def stored_bytes(self, rows: int, columns: int, scale_bytes: int) -> int:
        """Of codes, scales and whatever says where they belong."""
        if self.sparsity is not None and self.group_size is not None:
            groups = columns // self.group_size
            kept = rows * groups - min(int(rows * groups * self.sparsity), rows * (groups - 1))
            return group_sparse.stored_bytes(
                rows, columns, kept, self.group_size, self.bits, scale_bytes, False
            )
        if self.rank is not None:
            factor = self.model_copy(update={"rank": None})
            right = factor.stored_bytes(self.rank, columns, scale_bytes)
            return right + factor.stored_bytes(rows, self.rank, scale_bytes)
        if self.bits == 16:
            return rows * columns * scale_bytes
        scales = rows if self.group_size is None else rows * columns // self.group_size
        return rows * columns * self.bits // 8 + scales * scale_bytes

    def fits(self, columns: int) -> bool:
        """Whether the groups divide the width, and the rank."""
        widths = [columns] if self.rank is None else [columns, self.rank]
        return self.group_size is None or not any(width % self.group_size for width in widths)


@dataclass(frozen=True)
class Kept:
    """A weight in floating point."""

    restored: Tensor


@dataclass(frozen=True)
class Rounded:
    """A weight in integers.

    Attributes:
        codes: int8 [rows, columns], not packed.
        scale: float32 [rows] or [rows, groups].
    """

    codes: Tensor
    scale: Tensor

    @property
    def restored(self) -> Tensor:
        """Float32 [rows, columns]."""
        if self.scale.ndim == 1:
            return self.codes * self.scale[:, None]
        return (self.codes.unflatten(1, (self.scale.shape[1], -1)) * self.scale[..., None]).flatten(
            1
        )


@dataclass(frozen=True)
class Sparse:
    """A weight of which only some groups are stored.

    Attributes:
        codes: int8 [rows, columns], not packed.
        scale: float32 [rows, groups].
        keep: bool [rows, groups].
    """

    codes: Tensor
    scale: Tensor
    keep: Tensor

    @property
    def restored(self) -> Tensor:
        """Float32 [rows, columns]."""
        values = self.codes.unflatten(1, (self.scale.shape[1], -1)) * self.scale[..., None]
        return (values * self.keep[..., None]).flatten(1)


@dataclass(frozen=True)
class Factored:
    """A weight as the product of two.

    Attributes:
        left: [rows, rank].
        right: [rank, columns].
    """

    left: Kept | Rounded
    right: Kept | Rounded

    @property
    def restored(self) -> Tensor:
        """Float32 [rows, columns]."""
        return self.left.restored @ self.right.restored


Stored = Kept | Rounded | Sparse | Factored


@torch.no_grad()
def store(weight: Tensor, option: Option, metric: Metric, rounding: Rounding) -> Stored:
    """Bring a weight into the form that `option` says.

    Args:
        weight: [rows, columns].
        option: how to store it.
        metric: of errors, to fit by.
        rounding: `gptq` lets later columns make up for earlier ones.
    """
    weight = weight.to(torch.float32)
    if option.sparsity is not None:
        return _sparsify(weight, option, metric)
    if option.rank is None:
        return _round(weight, option, metric, rounding)
    (hessian, output), *_ = metric.terms
    _, basis = low_rank.weighted_basis(weight, hessian, output)
    return factorise(weight, basis, option, metric, rounding)


@torch.no_grad()
def factorise(
    weight: Tensor, basis: Tensor, option: Option, metric: Metric, rounding: Rounding
) -> Factored:
    """`store` for an option with a rank, where the basis is at hand.

    The basis is orthonormal in the units of the loss, so errors of the right factor cost alike in
    every row; the left factor is then refitted to the right one as it was rounded.

    Args:
        weight: float32 [rows, columns].
        basis: from `low_rank.weighted_basis`.
        option: with a rank.
        metric: with one term.
        rounding: of both factors.
    """
    assert option.rank is not None
    ((hessian, output),) = metric.terms
    exact_left, right = low_rank.weighted_truncate(weight, basis, output, option.rank)
    alike = torch.ones(option.rank, device=weight.device)
    rounded_right = _round(right, option, replace(metric, terms=[(hessian, alike)]), rounding)
    restored = rounded_right.restored
    seen = restored @ hessian
    inner = seen @ restored.T
    # Damped, the refit stays near the exact factor in directions that were hardly seen.
    missing = (weight - exact_left @ restored) @ seen.T
    left = exact_left + (missing.double() @ gptq.inverse(inner, metric.damping)).float()
    inner_metric = replace(metric, terms=[(inner, output)])
    return Factored(_round(left, option, inner_metric, rounding), rounded_right)


def _sparsify(weight: Tensor, option: Option, metric: Metric) -> Sparse:
    assert option.sparsity is not None and option.group_size is not None
    hessian, damping = metric.hessian, metric.damping
    keep, refitted = group_pruning.prune_groups(
        weight, hessian, metric.output, option.group_size, option.sparsity, damping=damping
    )
    codes, scale, _ = group_pruning.round_kept(
        refitted, hessian, keep, option.bits, damping=damping
    )
    return Sparse(codes, scale, keep)


def _round(weight: Tensor, option: Option, metric: Metric, rounding: Rounding) -> Kept | Rounded:
    if option.bits == 16:
        return Kept(weight)
    hessian = metric.hessian
    if option.bits == 8:
        scale = integer.absmax_scale(weight, per_channel=True)
        if rounding == "gptq":
            return Rounded(gptq.round_int8(weight, hessian, scale, metric.damping), scale)
        return Rounded(integer.quantize(weight, scale), scale)
    group_size = option.group_size or weight.shape[1]
    if rounding == "gptq":
        return Rounded(*gptq.round_int4(weight, hessian, group_size, metric.damping))
    scale = integer.search_group_scale(weight, hessian.diagonal(), group_size)
    return Rounded(integer.quantize_groups(weight, scale), scale)
