"""An embedding table over a stored weight of any format."""

import torch
from torch import Tensor

from spqlm.formats import StoredWeight
from spqlm.kernels.product import take_rows
from spqlm.modules.linear import Compressed


class CompressedEmbedding(Compressed):
    """Row lookup, times a constant that some models apply to embeddings.

    Attributes:
        num_embeddings: rows.
        embedding_dim: columns.
        embed_scale: factor on the looked-up rows (Gemma: the square root of the hidden size).
        padding_idx: as in `nn.Embedding`.
    """

    def __init__(
        self, weight: StoredWeight, embed_scale: float = 1.0, padding_idx: int | None = None
    ) -> None:
        """Hold exactly the tensors of `weight`, [rows, columns]."""
        super().__init__(weight)
        self.num_embeddings, self.embedding_dim = weight.shape
        self.embed_scale = embed_scale
        self.padding_idx = padding_idx

    def forward(self, input_ids: Tensor) -> Tensor:
        """Token ids [...] -> rows [..., embedding_dim] in the dtype of the scales."""
        rows = take_rows(self.stored_weight, input_ids.flatten())
        rows = rows.view(*input_ids.shape, self.embedding_dim)
        if self.embed_scale == 1.0:
            return rows
        # The dense table rounds the factor to its dtype too.
        return rows * torch.tensor(self.embed_scale, dtype=rows.dtype, device=rows.device)

    def extra_repr(self) -> str:
        """Shape and format, for `print(model)`."""
        form = self.format.describe(self.num_embeddings, self.embedding_dim)
        return f"{self.num_embeddings}, {self.embedding_dim}, {form}"
