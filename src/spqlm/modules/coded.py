"""What all quantised modules have in common."""

import torch
from torch import Tensor, nn

from spqlm.modules.ops import dense_weight, stored
from spqlm.numerics import integer


class Coded(nn.Module):
    """Holds weights as integer codes and scales, and no float copy.

    Attributes:
        codes: integer parameter.
        scale: parameter in the model's dtype; weights are codes times scale.
    """

    codes: nn.Parameter
    scale: nn.Parameter

    def hold(self, codes: Tensor, scale: Tensor) -> None:
        """Take exactly these tensors, without a copy."""
        self.codes = nn.Parameter(codes, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)

    def check(self) -> None:
        """Refuse values that no weight could have been stored as.

        Raises:
            ValueError: says what is wrong; shapes and dtypes are right already.
        """
        signed = self.codes.dtype == torch.uint8
        sound = torch.isfinite(self.scale) & ((self.scale != 0) if signed else (self.scale > 0))
        if not bool(sound.all()):
            wrong = "zero" if signed else "zero, negative"
            raise ValueError(f"has a scale that is {wrong} or not finite")


class CodedLinear(Coded):
    """A linear layer of codes.

    Attributes:
        in_features: width of the input.
        out_features: width of the output.
        bias: parameter [out_features] or None.
    """

    def __init__(self, in_features: int, out_features: int, bias: Tensor | None) -> None:
        """Codes and scale are taken afterwards, by `hold`."""
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def dequantize(self) -> Tensor:
        """The weight [out_features, in_features] in the scale's dtype."""
        return integer.dequantize(self.codes, self.scale.detach())


class CodedEmbedding(Coded):
    """An embedding table of codes.

    Attributes:
        num_embeddings: rows.
        embedding_dim: columns.
        embed_scale: factor on the looked-up rows (Gemma: the square root of the hidden size).
        padding_idx: as in `nn.Embedding`.
    """

    def __init__(
        self, num_embeddings: int, embedding_dim: int, embed_scale: float, padding_idx: int | None
    ) -> None:
        """Codes and scale are taken afterwards, by `hold`."""
        super().__init__()
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.embed_scale = embed_scale
        self.padding_idx = padding_idx

    def scaled(self, rows: Tensor) -> Tensor:
        """Looked-up rows times `embed_scale`, which the dense table rounds to its dtype too."""
        if self.embed_scale == 1.0:
            return rows
        return rows * torch.tensor(self.embed_scale, dtype=rows.dtype, device=rows.device)


@dense_weight.register
def _(module: CodedLinear) -> Tensor:
    return module.dequantize()


@stored.register
def _(module: CodedLinear) -> tuple[Tensor, Tensor | None, Tensor | None]:
    return module.codes, module.scale, module.bias
