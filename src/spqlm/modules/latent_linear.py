"""A linear layer while the codes of its weight are trained."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from spqlm.formats.base import Latent
from spqlm.modules.linear import CompressedLinear


class LatentLinear(nn.Module):
    """y = (what the codes come to) x + bias.

    Attributes:
        latent: the weight behind the codes.
        bias: [out] or None, not trained.
    """

    def __init__(self, latent: Latent, bias: nn.Parameter | None) -> None:
        """See the attributes."""
        super().__init__()
        self.latent = latent
        self.bias = bias
        self.out_features, self.in_features = latent.weight.shape

    def forward(self, x: Tensor) -> Tensor:
        """X [..., in_features] -> [..., out_features], in the dtype of x."""
        return functional.linear(x, self.latent().to(x.dtype), self.bias)


def latent_linear(module: nn.Module) -> LatentLinear | None:
    """The layer as one whose codes can be trained; None where there are none to train."""
    if not isinstance(module, CompressedLinear):
        return None
    latent = module.stored_weight.latent()
    return None if latent is None else LatentLinear(latent, module._parameters["bias"])


def settle(trained: LatentLinear, dtype: torch.dtype) -> CompressedLinear:
    """The layer of codes that training came to; scales in `dtype`."""
    return CompressedLinear(trained.latent.settle().cast(dtype), trained.bias)
