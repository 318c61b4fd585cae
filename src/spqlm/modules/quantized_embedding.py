"""An embedding table of int8 codes with a scale per row."""

import torch
from torch import Tensor, nn

from spqlm.modules.coded import CodedEmbedding
from spqlm.modules.quantized_linear import Granularity
from spqlm.numerics import integer


class QuantizedEmbedding(CodedEmbedding):
    """Row lookup in scale · codes, times a constant that some models apply to embeddings.

    Attributes:
        codes: int8 parameter [num_embeddings, embedding_dim].
        scale: parameter [num_embeddings] (per_channel) or [1] (per_tensor), in the model's dtype.
        embed_scale: factor on the looked-up rows (Gemma: the square root of the hidden size).
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        granularity: Granularity,
        embed_scale: float = 1.0,
        padding_idx: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Allocate without values; see `from_embedding` for a table with some."""
        super().__init__(num_embeddings, embedding_dim, embed_scale, padding_idx)
        self.granularity = granularity
        codes = torch.empty(num_embeddings, embedding_dim, dtype=torch.int8)
        scales = num_embeddings if granularity == "per_channel" else 1
        self.hold(codes, torch.empty(scales, dtype=dtype))

    @classmethod
    def from_embedding(
        cls, embedding: nn.Embedding, granularity: Granularity
    ) -> "QuantizedEmbedding":
        """Quantise a dense table to nearest; the scale takes its dtype."""
        weight = embedding.weight.detach()
        with torch.device("meta"):
            table = cls(
                *weight.shape,
                granularity=granularity,
                embed_scale=float(getattr(embedding, "scalar_embed_scale", 1.0)),
                padding_idx=embedding.padding_idx,
            )
        scale = integer.absmax_scale(weight, per_channel=granularity == "per_channel")
        codes = integer.quantize(weight, scale)
        table.hold(codes, scale.to(weight.dtype))
        return table

    def forward(self, input_ids: Tensor) -> Tensor:
        """Token ids [...] -> rows [..., embedding_dim] in the scale's dtype."""
        dtype = self.scale.dtype
        scale = self.scale if self.granularity == "per_tensor" else self.scale[input_ids][..., None]
        return self.scaled(self.codes[input_ids].to(dtype) * scale)

    def extra_repr(self) -> str:
        """Shape and granularity, for `print(model)`."""
        return f"{self.num_embeddings}, {self.embedding_dim}, int8, {self.granularity}"
