"""A product as torch.compile sees it: one operation, whatever the format, called as it is.

Left to itself Inductor takes the formula apart. Worse, it knows some shapes of it by sight and puts
kernels in their place that die on tensors which are not aligned, as those mapped from a file are
not. The operation asks for no alignment, and decides by the rows that come when it runs.
"""

import json
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from spqlm.formats import Format, StoredWeight, dump, parse
from spqlm.native import FLOATS

Compute = Callable[[Tensor, Sequence[StoredWeight], Tensor | None], Tensor]


def wanted(x: Tensor) -> bool:
    """Whether a product with x that is being traced is one operation.

    `torch.export` gets the formula instead, in operations of PyTorch alone: what it makes is for
    processes that do not have this package.
    """
    traced = torch.compiler.is_compiling() and not torch.compiler.is_exporting()
    return traced and (x.is_cpu or x.is_cuda) and x.dtype in FLOATS


def register(name: str, compute: Compute) -> Compute:
    """An operation of this name that computes what `compute` does, and is called as that is.

    Args:
        name: such as `spqlm::product`.
        compute: of x [..., in], the factors of a weight from the input's side on, and a bias [out]
            or None; gives [..., out] in the dtype of x.
    """

    def run(x: Tensor, bias: Tensor | None, tensors: Sequence[Tensor], stated: str) -> Tensor:
        return compute(x, _held(tensors, stated), bias)

    def shaped(x: Tensor, bias: Tensor | None, tensors: Sequence[Tensor], stated: str) -> Tensor:
        return x.new_empty(*x.shape[:-1], _held(tensors, stated)[-1].shape[0])

    operation = torch.library.custom_op(name, run, mutates_args=())
    operation.register_fake(shaped)

    def call(x: Tensor, weights: Sequence[StoredWeight], bias: Tensor | None) -> Tensor:
        tensors = [tensor for weight in weights for tensor in weight.tensors().values()]
        stated = [_stated(w.format, tuple(w.tensors()), w.shape[1]) for w in weights]
        y: Tensor = operation(x, bias, tensors, "\n".join(stated))
        return y

    return call


@torch.compiler.assume_constant_result
def _stated(form: Format, names: tuple[str, ...], columns: int) -> str:
    """All of a weight but its tensors, in one line: operations take no other objects."""
    return json.dumps([dump(form), names, columns])


def _held(tensors: Sequence[Tensor], stated: str) -> list[StoredWeight]:
    """The weights whose tensors stand one behind the other; a line states each."""
    left, held = iter(tensors), []
    for line in stated.splitlines():
        form, names, columns = _description(line)
        held.append(form.hold({name: next(left) for name in names}, columns))
    return held


@cache
def _description(stated: str) -> tuple[Format, list[str], int]:
    form, names, columns = json.loads(stated)
    return parse(form), names, columns
