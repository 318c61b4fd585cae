"""Where codes that are trained end to end start between their neighbours."""

from collections.abc import Iterable

from torch import Tensor

from spqlm.model.view import ModelView, Named
from spqlm.modules.ops import dense_weight, stored_weight


def weights_of(dense: ModelView, layers: Iterable[Named]) -> dict[str, Tensor]:
    """The dense model's weights of layers that have the shape they had, by full name.

    Codes whose weights lie near the border of their cell lose little by the next code, and start
    near it. So steps that are far smaller than a code change few codes each, and those that cost
    least.

    Args:
        dense: the model as it was.
        layers: of the compressed one; cut ones and factors of low rank have no weight in `dense`.

    Returns:
        [rows, columns] in the dense model's dtype; its own tensors, not to be changed.
    """
    there = {named.name: named.module for named in [*dense.leaves(), dense.embedding]}
    found = {}
    for layer in layers:
        module = there.get(layer.name)
        if module is not None and stored_weight(module).shape == stored_weight(layer.module).shape:
            found[layer.name] = dense_weight(module)
    return found
