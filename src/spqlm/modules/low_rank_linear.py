"""A linear layer as the product of two thin ones."""

from typing import Any

from torch import Tensor, nn

from spqlm.formats import StoredWeight
from spqlm.formats.dense import Dense, DenseWeight
from spqlm.formats.low_rank import LowRank
from spqlm.kernels.product import low_rank
from spqlm.modules.linear import CompressedLinear


class LowRankLinear(nn.Module):
    """y = left(right(x)): W ≈ L R with L [out, rank] and R [rank, in].

    Attributes:
        right: linear layer in_features -> rank, without bias; dense or compressed.
        left: linear layer rank -> out_features, which holds the bias; dense or compressed.
    """

    right: Any
    left: Any

    def __init__(self, right: nn.Module, left: nn.Module) -> None:
        """Join two linear layers; left.in_features must equal right.out_features."""
        super().__init__()
        self.right = right
        self.left = left

    @property
    def format(self) -> LowRank:
        """With the rank; what the factors are is for them to say."""
        return LowRank(rank=self.rank, factor=None)

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
        right, left = _factor(self.right), _factor(self.left)
        if right is not None and left is not None:
            product = low_rank(x, right, left, self.left.bias)
            if product is not None:
                return product
        output: Tensor = self.left(self.right(x))
        return output


def _factor(module: nn.Module) -> StoredWeight | None:
    """What a factor multiplies by; None where it does more, or somebody watches it."""
    if module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__:
        return None
    if isinstance(module, CompressedLinear):
        return module.stored_weight
    return DenseWeight(_DENSE, module.weight) if type(module) is nn.Linear else None


_DENSE = Dense()
