"""From a weight to integers: the options there are, how each is made and what it costs."""

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from spq.numerics import gptq, integer

Rounding = Literal["nearest", "gptq"]


class Option(BaseModel):
    """A way to store a weight.

    Attributes:
        bits: of a code.
        group_size: inputs that share a scale; None for one scale per output channel.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    bits: Literal[4, 8]
    group_size: int | None = None

    def stored_bytes(self, rows: int, columns: int, scale_bytes: int) -> int:
        """Of codes and scales."""
        scales = rows if self.group_size is None else rows * columns // self.group_size
        return rows * columns * self.bits // 8 + scales * scale_bytes

    def fits(self, columns: int) -> bool:
        """Whether the groups divide the width."""
        return self.group_size is None or columns % self.group_size == 0


@dataclass
class Metric:
    """What an error of a weight costs: ½ Σ_terms Σ_i o_i (ΔW H ΔWᵀ)_ii nats per token.

    A linear layer has one term; a tied embedding has one as the output projection and one as the
    lookup table.

    Attributes:
        terms: pairs of H [columns, columns] and o [rows].
    """

    terms: list[tuple[Tensor, Tensor]]

    @property
    def hessian(self) -> Tensor:
        """One matrix for all rows, to round by; rows differ in weight only."""
        weighted = [hessian * output.mean() for hessian, output in self.terms]
        return torch.stack(weighted).sum(0)

    def loss(self, error: Tensor) -> float:
        """Nats per token."""
        return sum(gptq.predicted_loss(error, h, o) for h, o in self.terms)


@dataclass
class Rounded:
    """A weight in integers.

    Attributes:
        codes: int8 [rows, columns], not packed.
        scale: float32 [rows] or [rows, groups].
        loss: predicted, in nats per token.
    """

    codes: Tensor
    scale: Tensor
    loss: float


@torch.no_grad()
def round_weight(weight: Tensor, option: Option, metric: Metric, rounding: Rounding) -> Rounded:
    """Round a weight and price the result.

    Args:
        weight: [rows, columns].
        option: how to store it.
        metric: of errors.
        rounding: `gptq` lets later columns make up for earlier ones.
    """
    weight = weight.to(torch.float32)
    if option.bits == 8:
        scale = integer.absmax_scale(weight, per_channel=True)
        if rounding == "gptq":
            codes = gptq.round_int8(weight, metric.hessian, scale)
        else:
            codes = integer.quantize(weight, scale)
        return Rounded(codes, scale, metric.loss(codes * scale[:, None] - weight))
    group_size = option.group_size or weight.shape[1]
    hessian = metric.hessian
    if rounding == "gptq":
        codes, scale = gptq.round_int4(weight, hessian, group_size)
    else:
        scale = integer.search_group_scale(weight, hessian.diagonal(), group_size)
        codes = integer.quantize_groups(weight, scale)
    restored = (codes.unflatten(1, (scale.shape[1], -1)) * scale[..., None]).flatten(1)
    return Rounded(codes, scale, metric.loss(restored - weight))
