"""Low-rank adapters that exist only while training and end up inside the weight."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from spqlm.modules.ops import linear_of, stored_weight


class LoraLinear(nn.Module):
    """base(x) + (alpha / rank) · B A x, with the base frozen (LoRA, arXiv 2106.09685, eq. 3).

    Attributes:
        base: a dense or quantised linear layer.
        down: A, float32 [rank, in_features], Kaiming-uniform.
        up: B, float32 [out_features, rank], zero: the layer starts out unchanged.
    """

    def __init__(
        self, base: nn.Module, rank: int, alpha: float, generator: torch.Generator
    ) -> None:
        """Wrap `base`; A is drawn from `generator` (on the CPU)."""
        super().__init__()
        self.base = base
        self.scaling = alpha / rank
        device = next(base.parameters()).device
        out_features, in_features = int(base.out_features), int(base.in_features)  # type: ignore[arg-type]
        bound = 1 / math.sqrt(in_features)
        down = torch.empty(rank, in_features).uniform_(-bound, bound, generator=generator)
        self.down = nn.Parameter(down.to(device))
        self.up = nn.Parameter(torch.zeros(out_features, rank, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """X [..., in_features] -> [..., out_features], in the dtype of x."""
        # Scaled where there are few numbers.
        inner = self.scaling * functional.linear(x, self.down.to(x.dtype))
        return self.base(x) + functional.linear(inner, self.up.to(x.dtype))

    @property
    def delta(self) -> Tensor:
        """What merging adds to the weight: float32 [out_features, in_features]."""
        return self.scaling * (self.up.detach() @ self.down.detach())

    @torch.no_grad()
    def merged(self, generator: torch.Generator) -> nn.Module:
        """The base with the update inside.

        A quantised base keeps its scales and gets new codes. Its weights lie on the grid and most
        updates are smaller than half a step, which rounding to nearest would undo entirely; they
        are rounded at random instead, right on average.

        Args:
            generator: source of that rounding, on the layer's device.

        Raises:
            SpqError: the format of the base's weight cannot take up an update.
        """
        weight = stored_weight(self.base).detach().absorb(self.delta, generator)
        bias: Tensor | None = self.base.bias  # type: ignore[assignment]
        return linear_of(weight, bias)
