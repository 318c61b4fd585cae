"""What a layer on a GPU keeps from one call to the next, so that Python decides once, not always.

For one token a product takes some microseconds, less than it takes to find out which kernel, which
tiles and which arguments it needs. All of that follows from the weight and the shape of the inputs.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from spqlm.formats import StoredWeight
from spqlm.kernels.gpu import kernels_for
from spqlm.numerics.identity import state_of


class Remembered:
    """Products of one layer with few rows of input; forgotten when its tensors move or change.

    A copy of a layer begins with nothing remembered.
    """

    def __init__(self) -> None:
        """Nothing is known before the first call."""
        self._places: list[Any] = []
        self._products: dict[Any, Callable[[Tensor], Tensor]] = {}

    def __reduce__(self) -> Any:
        """A new one, where a layer is copied or pickled."""
        return Remembered, ()

    def product(
        self, x: Tensor, tensors: Iterable[Tensor | None], weight: Callable[[], StoredWeight]
    ) -> Tensor | None:
        """Inputs times the weight, transposed, plus bias, by what the first such call prepared.

        Args:
            x: [..., in], on a GPU.
            tensors: what the weight consists of, and at the end the bias [out] or None.
            weight: gives the weight; asked for when there is something to prepare.

        Returns:
            [..., out] in the dtype of x, not differentiable. None for many rows of input, where
            gradients may be needed, and where no kernel takes this.
        """
        if torch.is_grad_enabled() or type(x) is not Tensor or not x.is_contiguous():
            return None
        tensors = list(tensors)
        places = [None if t is None else state_of(t) for t in tensors]
        if places != self._places:
            self._places, self._products = places, {}
        key = x.dtype, x.shape[-1:], x.numel(), x.get_device()
        found = self._products.get(key)
        if found is None:
            kernels = kernels_for(x)
            found = None if kernels is None else kernels.ready(x, weight(), tensors[-1])
            if found is None:
                return None
            self._products[key] = found
        return found(x)
