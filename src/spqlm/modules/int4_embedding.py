"""An embedding table of packed 4-bit codes with a scale per group of columns."""

import torch
from torch import Tensor, nn

from spqlm.modules.coded import CodedEmbedding
from spqlm.numerics import integer


class Int4Embedding(CodedEmbedding):
    """Row lookup in scale · codes, times a constant that some models apply to embeddings.

    Attributes:
        codes: uint8 parameter [num_embeddings, embedding_dim / 2].
        scale: parameter [num_embeddings, embedding_dim / group_size], in the model's dtype.
        embed_scale: factor on the looked-up rows (Gemma: the square root of the hidden size).
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        group_size: int,
        embed_scale: float = 1.0,
        padding_idx: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Allocate without values."""
        super().__init__(num_embeddings, embedding_dim, embed_scale, padding_idx)
        self.group_size = group_size
        codes = torch.empty(num_embeddings, embedding_dim // 2, dtype=torch.uint8)
        scale = torch.empty(num_embeddings, embedding_dim // group_size, dtype=dtype)
        self.hold(codes, scale)

    @classmethod
    def from_codes(cls, embedding: nn.Embedding, codes: Tensor, scale: Tensor) -> "Int4Embedding":
        """In place of a dense table.

        Args:
            embedding: the table, for what is not its weight.
            codes: unpacked int8 [rows, columns] in [-8, 7].
            scale: [rows, groups], in the model's dtype.
        """
        with torch.device("meta"):
            table = cls(
                *codes.shape,
                group_size=codes.shape[1] // scale.shape[1],
                embed_scale=float(getattr(embedding, "scalar_embed_scale", 1.0)),
                padding_idx=embedding.padding_idx,
            )
        table.hold(integer.pack_int4(codes), scale)
        return table

    def forward(self, input_ids: Tensor) -> Tensor:
        """Token ids [...] -> rows [..., embedding_dim] in the scale's dtype."""
        ids = input_ids.flatten()
        rows = integer.dequantize(self.codes[ids], self.scale[ids])
        return self.scaled(rows.view(*input_ids.shape, self.embedding_dim))

    def extra_repr(self) -> str:
        """Shape and group size, for `print(model)`."""
        return f"{self.num_embeddings}, {self.embedding_dim}, int4, group_size={self.group_size}"
