"""An embedding table of packed 4-bit codes with a scale per group of columns."""

import torch
from torch import Tensor, nn

from spq.modules.coded import Coded
from spq.numerics import integer


class Int4Embedding(Coded):
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
        super().__init__()
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.group_size = group_size
        self.embed_scale = embed_scale
        self.padding_idx = padding_idx
        codes = torch.empty(num_embeddings, embedding_dim // 2, dtype=torch.uint8)
        scale = torch.empty(num_embeddings, embedding_dim // group_size, dtype=dtype)
        self.codes = nn.Parameter(codes, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)

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
        table.codes = nn.Parameter(integer.pack_int4(codes), requires_grad=False)
        table.scale = nn.Parameter(scale, requires_grad=False)
        return table

    def forward(self, input_ids: Tensor) -> Tensor:
        """Token ids [...] -> rows [..., embedding_dim] in the scale's dtype."""
        ids = input_ids.flatten()
        rows = integer.dequantize(self.codes[ids], self.scale[ids])
        rows = rows.view(*input_ids.shape, self.embedding_dim)
        if self.embed_scale == 1.0:
            return rows
        # The dense table rounds this factor to its own dtype too.
        return rows * torch.tensor(self.embed_scale, dtype=rows.dtype, device=rows.device)

    def extra_repr(self) -> str:
        """Shape and group size, for `print(model)`."""
        return f"{self.num_embeddings}, {self.embedding_dim}, int4, group_size={self.group_size}"
