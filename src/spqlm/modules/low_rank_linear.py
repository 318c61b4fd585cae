"""A linear layer as the product of two thin ones."""

from typing import Any

import torch
from torch import Tensor, nn

from spqlm.kernels.dispatch import native_low_rank
from spqlm.modules.ops import (
    dense_weight,
    linear_from,
    select_inputs,
    select_outputs,
    stored,
    watched,
)


class LowRankLinear(nn.Module):
    """y = left(right(x)): W ≈ L R with L [out, rank] and R [rank, in].

    Attributes:
        right: linear layer in_features -> rank, without bias; dense or quantised.
        left: linear layer rank -> out_features, which holds the bias; dense or quantised.
    """

    right: Any
    left: Any

    def __init__(self, right: nn.Module, left: nn.Module) -> None:
        """Join two linear layers; left.in_features must equal right.out_features."""
        super().__init__()
        self.right = right
        self.left = left

    @classmethod
    def from_factors(cls, left: Tensor, right: Tensor, bias: Tensor | None) -> "LowRankLinear":
        """From left [out, rank], right [rank, in] and bias [out] or None."""
        return cls(linear_from(right, None), linear_from(left, bias))

    @classmethod
    def empty(
        cls, in_features: int, out_features: int, rank: int, *, bias: bool, dtype: torch.dtype
    ) -> "LowRankLinear":
        """Allocate without values."""
        right = nn.Linear(in_features, rank, bias=False, dtype=dtype)
        return cls(right, nn.Linear(rank, out_features, bias=bias, dtype=dtype))

    @property
    def in_features(self) -> int:
        """Width of the input."""
        return int(self.right.in_features)

    @property
    def out_features(self) -> int:
        """Width of the output."""
        return int(self.left.out_features)

    @property
    def rank(self) -> int:
        """Inner width."""
        return int(self.right.out_features)

    @property
    def bias(self) -> Tensor | None:
        """The left factor's bias."""
        bias: Tensor | None = self.left.bias
        return bias

    def forward(self, x: Tensor) -> Tensor:
        """X [..., in_features] -> [..., out_features]."""
        right, left = stored(self.right), stored(self.left)
        if right and left and not watched(self.right) and not watched(self.left):
            product = native_low_rank(x, right, left)
            if product is not None:
                return product
        output: Tensor = self.left(self.right(x))
        return output

    def dequantize(self) -> Tensor:
        """The weight left @ right, [out_features, in_features]."""
        return dense_weight(self.left) @ dense_weight(self.right)


@dense_weight.register
def _(module: LowRankLinear) -> Tensor:
    return module.dequantize()


@select_outputs.register
def _(module: LowRankLinear, index: Tensor) -> nn.Module:
    return LowRankLinear(module.right, select_outputs(module.left, index))


@select_inputs.register
def _(module: LowRankLinear, index: Tensor) -> nn.Module:
    return LowRankLinear(select_inputs(module.right, index), module.left)
