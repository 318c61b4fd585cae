"""Times of products: the weights of a whole model in one format, in the order of its layers."""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from spqlm import native
from spqlm.errors import SpqError
from spqlm.formats import Format, StoredWeight
from spqlm.formats.dense import Dense
from spqlm.formats.group_sparse import GroupSparse
from spqlm.kernels.weights import matrix_of
from spqlm.kernels.widening import FEW, widened_products
from spqlm.modules.ops import linear_of, stored_weight
from spqlm.profile import Product

ROUNDS = 7
# A model's layers are made in one format until they take so many bytes: more than caches hold.
RING_BYTES = 256 * 2**20
# What floats of a weight are; no kernel is faster for some values than for others.
VALUE = 0.01
# Smaller than any weight: what remains of its time is the call.
NOTHING = 32


Call = Callable[[Tensor], object]


class Shape(NamedTuple):
    """Of a weight: outputs and inputs."""

    rows: int
    columns: int

    @classmethod
    def of(cls, module: Any) -> "Shape":
        """Of a linear layer's weight."""
        return cls(int(module.out_features), int(module.in_features))


def time_products(
    form: Format,
    layer: Sequence[Shape],
    layers: int,
    tokens: Sequence[int],
    dtype: torch.dtype,
    rounds: int = ROUNDS,
    natively: bool = False,
) -> list[Product]:
    """Time the weights of a decoder, one layer after another, as a step of the model meets them.

    Args:
        form: of the weights; each shape that it does not fit is left out.
        layer: shapes of a layer's weights, in their order.
        layers: that the model has.
        tokens: counts of input rows.
        dtype: of inputs.
        rounds: passes over the layers; medians over all of them are taken.
        natively: whether steps of few tokens are computed by the native library, floats included.
    """
    fitting = [shape for shape in layer if form.misfit(*shape) is None]
    if not fitting:
        return []
    each = sum(form.stored_bytes(*shape, dtype.itemsize) for shape in fitting)
    count = max(1, min(layers, -(-RING_BYTES // each)))
    ring = [(s, _linear(form, s, dtype)) for _ in range(count) for s in fitting]
    found = []
    for rows in tokens:
        call = _call_seconds(rows, dtype, natively)
        calls = [(shape, _call(linear, rows, natively)) for shape, linear in ring]
        for shape, seconds in _seconds(calls, rows, dtype, rounds).items():
            # The native decode step makes one call for all of its products.
            own = max(seconds - call, seconds / 10)
            found.append(
                Product(
                    format=form,
                    rows=shape.rows,
                    columns=shape.columns,
                    tokens=rows,
                    seconds=own,
                )
            )
    return found


def random_weight(form: Format, shape: Shape, dtype: torch.dtype) -> StoredWeight:
    """A weight of random codes, floats in `dtype`.

    Raises:
        SpqError: which groups are stored is not a matter of random numbers.
    """
    if isinstance(form, GroupSparse):
        raise SpqError("group-sparse weights cannot be timed; leave out checkpoints that have some")
    made = form.empty(*shape, dtype)
    for tensor in made.tensors().values():
        if tensor.is_floating_point():
            tensor.data.fill_(VALUE)
        else:
            limits = torch.iinfo(tensor.dtype)
            tensor.data.random_(limits.min + 1, limits.max)
    return made.detach()


def _linear(form: Format, shape: Shape, dtype: torch.dtype) -> nn.Module:
    return linear_of(random_weight(form, shape, dtype), None)


def _call(linear: nn.Module, tokens: int, natively: bool) -> Call:
    """A layer's product as a step computes it."""
    library = native.library()
    if not natively or library is None or tokens >= FEW:
        return linear
    matrix = matrix_of(stored_weight(linear), None)
    return linear if matrix is None else lambda x: native.linear(library, x, matrix)


def _call_seconds(tokens: int, dtype: torch.dtype, natively: bool) -> float:
    """What a call takes whatever its weight."""
    shape = Shape(NOTHING, NOTHING)
    call = _call(_linear(Dense(), shape, dtype), tokens, natively)
    return min(_seconds([(shape, call)], tokens, dtype, 50).values())


@torch.inference_mode()
def _seconds(
    ring: Sequence[tuple[Shape, Call]], tokens: int, dtype: torch.dtype, rounds: int
) -> dict[Shape, float]:
    """Median of a call by shape; the first round only warms up."""
    inputs: dict[int, Tensor] = {
        shape.columns: torch.randn(1, tokens, shape.columns).to(dtype) for shape, _ in ring
    }
    taken: dict[Shape, list[float]] = defaultdict(list)
    for turn in range(rounds + 1):
        for shape, call in ring:
            x = inputs[shape.columns]
            started = time.perf_counter()
            if tokens < FEW:
                call(x)
            else:
                with widened_products(dtype):
                    call(x)
            if turn:
                taken[shape].append(time.perf_counter() - started)
    return {shape: statistics.median(seconds) for shape, seconds in taken.items()}
