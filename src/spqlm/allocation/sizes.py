"""Bytes of weights and of whole models, as the file counts that they go to."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from torch import nn

from spqlm.formats import Format
from spqlm.model.view import ModelView
from spqlm.modules.linear import Compressed
from spqlm.modules.ops import float_dtype, stored_weight


def _as_stored(form: Format, rows: int, columns: int, float_bytes: int) -> int:
    return form.stored_bytes(rows, columns, float_bytes)


@dataclass(frozen=True)
class Sizes:
    """How a kind of file counts; by default as our own checkpoints do.

    Attributes:
        weight: bytes of a weight, from its format, rows, columns, and the bytes of a float beside
            it.
        vector: bytes of an element of biases, norms and all else that is no weight; None where they
            are as the model holds them.
        tensor: bytes of a tensor beside its numbers, generously.
        tensors: most of them that a weight becomes.
        others: bytes of all that is no tensor.
    """

    weight: Callable[[Format, int, int, int], int] = _as_stored
    vector: int | None = None
    tensor: int = 200
    # Codes and scale, twice where there are two factors.
    tensors: int = 4
    others: int = 0

    def stored(self, module: nn.Module, form: Format, rows: int, columns: int) -> int:
        """Of the module's weight in this format and shape, and its bias."""
        bias = getattr(module, "bias", None)
        extra = 0 if bias is None else rows * (self.vector or bias.element_size())
        return self.weight(form, rows, columns, float_dtype(module).itemsize) + extra

    def rest(self, view: ModelView, decided: Collection[nn.Module]) -> int:
        """Of a model with its headers, less the weights of some modules.

        Args:
            view: the model.
            decided: modules whose weights are counted elsewhere.
        """
        total = self.others
        seen: set[int] = set()
        for module in decided:
            seen |= {id(p) for p in module.parameters()}
            total += self.tensor * (self.tensors + (getattr(module, "bias", None) is not None))
        for module in view.model.modules():
            own = {id(p): p for p in module.parameters(recurse=False) if id(p) not in seen}
            seen |= own.keys()
            if isinstance(module, Compressed | nn.Linear | nn.Embedding):
                weight = stored_weight(module)
                held = {id(tensor) for tensor in weight.tensors().values()}
                if own.keys() >= held:
                    total += self.tensor * min(self.tensors, len(held))
                    total += self.weight(weight.format, *weight.shape, float_dtype(module).itemsize)
                own = {key: p for key, p in own.items() if key not in held}
            for p in own.values():
                total += self.tensor + p.numel() * (self.vector or p.element_size())
        return total
