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


def wanted(x: Tensor, *weights: StoredWeight) -> bool:
    """Whether a product that is being traced is one operation.

    `torch.export` gets the formula instead, in operations of PyTorch alone: what it makes is for
    processes that do not have this package.
    """
    return (
        torch.compiler.is_compiling()
        and not torch.compiler.is_exporting()
        and (x.is_cpu or x.is_cuda)
        and x.dtype in FLOATS
        and all(weight.layout() is not None for weight in weights)
    )


def register(name: str, compute: Compute) -> Compute:
    """An operation of this name that computes what `compute` does, and is called as that is.

    Args:
        name: such as `spqlm::product`.
        compute: of x [..., in], the factors of a weight from the input's side on, and a bias [out]
            or None; gives [..., out] in the dtype of x.
    """

    def run(
        x: Tensor,
        bias: Tensor | None,
        tensors: Sequence[Tensor],
        names: Sequence[str],
        formats: Sequence[str],
        columns: Sequence[int],
    ) -> Tensor:
        return compute(x, _held(tensors, names, formats, columns), bias)

    def shaped(
        x: Tensor,
        bias: Tensor | None,
        tensors: Sequence[Tensor],
        names: Sequence[str],
        formats: Sequence[str],
        columns: Sequence[int],
    ) -> Tensor:
        last = _held(tensors, names, formats, columns)[-1]
        return x.new_empty(*x.shape[:-1], last.shape[0])

    operation = torch.library.custom_op(name, run, mutates_args=())
    operation.register_fake(shaped)

    def call(x: Tensor, weights: Sequence[StoredWeight], bias: Tensor | None) -> Tensor:
        parts = [
            (f"{place}.{name}", tensor)
            for place, weight in enumerate(weights)
            for name, tensor in weight.tensors().items()
        ]
        y: Tensor = operation(
            x,
            bias,
            [tensor for _, tensor in parts],
            [name for name, _ in parts],
            [_stated(weight.format) for weight in weights],
            [weight.shape[1] for weight in weights],
        )
        return y

    return call


def _held(
    tensors: Sequence[Tensor],
    names: Sequence[str],
    formats: Sequence[str],
    columns: Sequence[int],
) -> list[StoredWeight]:
    parts: list[dict[str, Tensor | None]] = [{} for _ in formats]
    for name, tensor in zip(names, tensors, strict=True):
        place, _, part = name.partition(".")
        parts[int(place)][part] = tensor
    return [
        _format(stated).hold(part, width)
        for stated, part, width in zip(formats, parts, columns, strict=True)
    ]


@torch.compiler.assume_constant_result
def _stated(form: Format) -> str:
    return json.dumps(dump(form))


@cache
def _format(stated: str) -> Format:
    return parse(json.loads(stated))
