"""Products of several weights of one shape, each with rows of its own, in one native call.

A decoding step sends a token through a few experts, of which each is a small weight: calls and the
objects that they need would take longer than the products.
"""

import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from spqlm import native
from spqlm.kernels.weights import matrix_of
from spqlm.modules.ops import plain, stored_weight, watched
from spqlm.numerics.identity import state_of


class _Known(NamedTuple):
    """What the kernels are told of a layer, while its tensors are where they were."""

    layer: "weakref.ref[nn.Module]"
    places: list[tuple[object, ...]]
    matrix: native.Matrix | None


class GroupedProducts:
    """Products of the linear layers of one block; a copy of the block begins with a new one."""

    def __init__(self) -> None:
        """Nothing is known before the first call."""
        self._known: dict[Any, _Known] = {}

    def __reduce__(self) -> Any:
        """A new one, where a block is copied or pickled."""
        return GroupedProducts, ()

    def product(
        self, x: Tensor, layers: Sequence[tuple[Any, nn.Module]], counts: Sequence[int]
    ) -> Tensor | None:
        """As the layers themselves give, one after the other.

        Args:
            x: [n, in].
            layers: each by a key of its own, the same in every call.
            counts: how many consecutive rows are each layer's; n together.

        Returns:
            [n, out] in the dtype of x, not differentiable; None where no kernel takes all of it, or
            somebody would notice that the layers are not called.
        """
        library = native.library()
        if library is None or torch.is_grad_enabled() or not x.numel():
            return None
        x = x.contiguous()
        if x.dtype not in native.FLOATS or not native.addressable(x):
            return None
        matrices = [self._matrix(key, layer) for key, layer in layers]
        known = [matrix for matrix in matrices if matrix is not None]
        if len(known) < len(matrices) or known[0].columns != x.shape[1]:
            return None
        return native.linear_each(library, x, known, counts)

    def _matrix(self, key: Any, layer: nn.Module) -> native.Matrix | None:
        if watched(layer) or getattr(layer, "int8_inputs", False):
            return None
        places = [state_of(p) for p in layer._parameters.values() if p is not None]
        known = self._known.get(key)
        if known is None or known.layer() is not layer or known.places != places:
            matrix = None
            if plain(layer):
                bias: Any = layer.bias
                matrix = matrix_of(stored_weight(layer), bias)
            known = self._known[key] = _Known(weakref.ref(layer), places, matrix)
        return known.matrix
