"""Linear layers and embeddings while the codes of their weights are trained."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from spqlm.formats._latent import Latent
from spqlm.modules.embedding import CompressedEmbedding
from spqlm.modules.linear import Compressed, CompressedLinear


class LatentLinear(nn.Module):
    """y = (what the codes come to) x + bias.

    Attributes:
        latent: positions between the codes.
        bias: [out] or None, not trained.
    """

    def __init__(self, latent: Latent, bias: nn.Parameter | None) -> None:
        """See the attributes."""
        super().__init__()
        self.latent = latent
        self.bias = bias
        self.out_features, self.in_features = latent.position.shape

    def forward(self, x: Tensor) -> Tensor:
        """X [..., in_features] -> [..., out_features], in the dtype of x."""
        return functional.linear(x, self.latent.values(x.dtype), self.bias)

    def settled(self, dtype: torch.dtype) -> CompressedLinear:
        """The layer of codes that training came to; scales in `dtype`."""
        return CompressedLinear(self.latent.settle().cast(dtype), self.bias)


class LatentEmbedding(nn.Module):
    """Row lookup in what the codes come to, times a constant.

    Attributes:
        latent: positions between the codes of the table.
        embed_scale: factor on the rows.
        padding_idx: as in `nn.Embedding`.
    """

    def __init__(self, latent: Latent, like: CompressedEmbedding) -> None:
        """With the factor that `like` has, and rows in its dtype."""
        super().__init__()
        self.latent = latent
        self._dtype = next(p.dtype for p in like.parameters() if p.is_floating_point())
        self.embed_scale, self.padding_idx = like.embed_scale, like.padding_idx

    def forward(self, input_ids: Tensor) -> Tensor:
        """Token ids [...] -> rows [..., columns]."""
        rows = functional.embedding(input_ids, self.latent.values(self._dtype))
        if self.embed_scale == 1.0:
            return rows
        return rows * torch.tensor(self.embed_scale, dtype=rows.dtype, device=rows.device)

    def settled(self, dtype: torch.dtype) -> CompressedEmbedding:
        """The table of codes that training came to; scales in `dtype`."""
        stored = self.latent.settle().cast(dtype)
        return CompressedEmbedding(stored, self.embed_scale, self.padding_idx)


Latents = LatentLinear | LatentEmbedding


def latent_layer(module: nn.Module) -> Latents | None:
    """The layer as one whose codes can be trained; None where there are none to train."""
    if not isinstance(module, Compressed):
        return None
    latent = module.stored_weight.latent()
    if latent is None:
        return None
    if isinstance(module, CompressedEmbedding):
        return LatentEmbedding(latent, module)
    return LatentLinear(latent, module._parameters["bias"])


@contextmanager
def rounded_once(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Inside, codes stand as they are on entry, rounded once for all forward passes.

    Gradients of those passes, summed in `dtype`, reach positions and scales at the end.

    Args:
        model: some layers of which train codes.
        dtype: that its layers compute in.
    """
    latents = [module for module in model.modules() if isinstance(module, Latent)]
    rounded = [latent() for latent in latents]
    for latent, values in zip(latents, rounded, strict=True):
        latent.held = values.detach().to(dtype).requires_grad_(values.requires_grad)
    try:
        yield
        for latent, values in zip(latents, rounded, strict=True):
            if latent.held is not None and latent.held.grad is not None:
                values.backward(latent.held.grad.to(values.dtype))
    finally:
        for latent in latents:
            latent.held = None
