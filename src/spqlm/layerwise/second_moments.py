"""E[w x xᵀ] / E[w] of what enters linear layers: the hessian of a layer's squared error."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spqlm.errors import SpqError
from spqlm.kernels.gram import add_gram
from spqlm.layerwise.walk import Tokens
from spqlm.numerics.gram import complete_gram, complete_gram_

# What each of some tokens counts for a linear layer, float32 [tokens], none below 0.
Weights = Callable[[str, Tokens], Tensor]


@dataclass
class _Sum:
    """Σ w x xᵀ on and above the diagonal, Σ w, and how many tokens have w > 0."""

    outer: Tensor
    weight: float = 0.0
    tokens: int = 0


class SecondMoments:
    """Running second moments by linear layer; an instance is an `Observe`.

    Where all tokens count alike, projections that read the same rows share one sum.
    """

    def __init__(self, names: Iterable[str], weights: Weights | None = None) -> None:
        """Of the linear layers called `names`; without `weights` each token counts once."""
        self._wanted = set(names)
        self._weights = weights
        self._owners: dict[str, str] = {}
        self._sums: dict[str, _Sum] = {}
        self._last: tuple[Tensor | None, str] = (None, "")

    def __call__(self, name: str, tokens: Tokens, rows: Tensor) -> None:
        """Count what enters a layer.

        Args:
            name: of the layer; one that is not wanted is ignored.
            tokens: which ones these are.
            rows: [tokens, in].
        """
        if name not in self._wanted:
            return
        if self._weights is not None:
            self._owners[name] = name
            self._add(name, rows, self._weights(name, tokens))
            return
        last, owner = self._last
        owner = self._owners.setdefault(name, owner if rows is last else name)
        self._last = rows, owner
        if owner == name:
            self._add(name, rows, torch.ones(len(rows), device=rows.device))

    def _add(self, name: str, rows: Tensor, weights: Tensor) -> None:
        if name not in self._sums:
            width = rows.shape[1]
            self._sums[name] = _Sum(torch.zeros(width, width, device=rows.device))
        found, counted = self._sums[name], int((weights > 0).sum())
        if not counted:
            return
        add_gram(found.outer, rows, weights)
        found.weight += float(weights.sum())
        found.tokens += counted

    def mean(self, name: str) -> Tensor:
        """Float32 [in, in]; zeros where no token counted.

        Raises:
            SpqError: what enters the layer is not finite, or its square is not.
        """
        found = self._sums[self._owners[name]]
        return _checked(complete_gram(found.outer) / (found.weight or 1.0), name)

    def take_mean(self, name: str) -> Tensor:
        """`mean` in the memory of the sum, which is gone then."""
        owner = self._owners[name]
        found = self._sums[owner]
        self._sums[owner] = replace(found, outer=found.outer[:0])
        mean = complete_gram_(found.outer).div_(found.weight or 1.0)
        return _checked(mean, name)

    def tokens(self, name: str) -> int:
        """How many tokens counted."""
        return self._sums[self._owners[name]].tokens


def _checked(mean: Tensor, name: str) -> Tensor:
    # The extremes are NaN where any value is, and take no memory.
    if not all(bool(torch.isfinite(end)) for end in mean.aminmax()):
        raise SpqError(f"what enters {name!r} on the text is too large to be squared in float32")
    return mean
