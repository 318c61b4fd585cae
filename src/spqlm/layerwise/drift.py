"""E[w (x_dense - x) xᵀ] / E[w]: how far compressed layers have moved what enters a weight."""

from collections.abc import Iterable

import torch
from torch import Tensor

from spqlm.layerwise.second_moments import Weights
from spqlm.layerwise.walk import Tokens


class Drift:
    """Running sums by linear layer, of layers that all tokens enter."""

    def __init__(self, names: Iterable[str], weights: Weights) -> None:
        """Of the linear layers called `names`, each token counting what `weights` says."""
        self._wanted = set(names)
        self._weights = weights
        self._dense: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}
        self._weight: dict[str, float] = {}

    def on_dense(self, name: str, tokens: Tokens, rows: Tensor) -> None:
        """Keep what enters a layer of the dense model, [tokens, in], until `on_rows`."""
        if name in self._wanted:
            self._dense[name] = rows

    def on_rows(self, name: str, tokens: Tokens, rows: Tensor) -> None:
        """Count what enters the layer now, [tokens, in]."""
        dense = self._dense.pop(name, None)
        if dense is None:
            return
        weights = self._weights(name, tokens)
        moved = (dense.float() - rows.float()).mul_(weights[:, None]).to(rows.dtype)
        if name not in self._sums:
            self._sums[name] = torch.zeros(2 * rows.shape[1:], device=rows.device)
            self._weight[name] = 0.0
        self._sums[name] += moved.T @ rows
        self._weight[name] += float(weights.sum())

    def mean(self, name: str) -> Tensor | None:
        """Float32 [in, in]; None where nothing was counted."""
        total = self._weight.get(name)
        return self._sums[name] / total if total else None
