"""Products of half-precision matrices in float32, on processors that multiply those faster.

Without instructions for bfloat16 or float16 (x86 before AVX-512), PyTorch's products of them run
at a fraction of the speed of float32, 20 against 121 GFLOP/s on a Zen 3, and backward passes slower
still. Widening both sides and rounding the result is what such a product means, a sum in float32
rounded once, and costs a pass over each side.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_map_only

FEW = 8
"""Below so many rows or columns of the result the weight is read once: widening would cost more."""

MOST_WIDENED = 1 << 30
"""Bytes of a model's floats in float32; models with more stay as they are."""

PIECE_BYTES = 64 * 2**20
"""Of a matrix in float32 at a time: an output projection of many tokens would take a gigabyte."""

_aten = torch.ops.aten
# Which argument is the left side; the right one follows. The first two come from inference mode.
_LEFT = {
    _aten.linear.default: 0,
    _aten.matmul.default: 0,
    _aten.mm.default: 0,
    _aten.bmm.default: 0,
    _aten.addmm.default: 1,
    _aten.baddbmm.default: 1,
}


@cache
def arithmetic(dtype: torch.dtype) -> torch.dtype:
    """What to multiply matrices of this dtype in on this processor: the dtype itself or float32."""
    name = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    supported: Callable[[], bool] | None = getattr(torch.ops.mkldnn, name.get(dtype, ""), None)
    return dtype if supported is None or supported() else torch.float32


# Its forward pass is as fast in half precision.
_ATTENTION_BACKWARD = _aten._scaled_dot_product_flash_attention_for_cpu_backward.default


class _Widened(TorchDispatchMode):
    """Below autograd, so that what is kept for a backward pass stays as narrow as it was."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if _worthwhile(func, args):
            dtype, wide = args[0].dtype, arithmetic(args[0].dtype)
            if _large(func, args, wide):
                return _in_pieces(func, args[0], args[1], wide)
            args, kwargs = _changed((args, kwargs), dtype, wide)
            return _changed(func(*args, **kwargs), wide, dtype)
        return func(*args, **kwargs)


def _changed(tree: Any, before: torch.dtype, after: torch.dtype) -> Any:
    change = lambda t: t.to(after) if t.dtype == before else t  # noqa: E731
    return tree_map_only(Tensor, change, tree)


# Products of two matrices and nothing else, and which dimension of the right one has the outputs.
_OUTPUTS = {_aten.linear.default: 0, _aten.mm.default: 1}


def _large(func: Any, args: Any, wide: torch.dtype) -> bool:
    if func not in _OUTPUTS or len(args) != 2:
        return False
    right: Tensor = args[1]
    return right.ndim == 2 and right.numel() * wide.itemsize > PIECE_BYTES


def _in_pieces(func: Any, left: Tensor, right: Tensor, wide: torch.dtype) -> Tensor:
    """As much of the right side in the wide dtype at a time as `PIECE_BYTES` hold."""
    side = _OUTPUTS[func]
    outputs, inputs = right.shape[side], right.shape[1 - side]
    if side == 1 and inputs > outputs and right.is_contiguous():
        return _sum_of_pieces(left, right, wide)
    some = max(1, PIECE_BYTES // (inputs * wide.itemsize))
    widened = left.to(wide)
    found = left.new_empty(*left.shape[:-1], outputs)
    for out, piece in zip(found.split(some, -1), right.split(some, side), strict=True):
        out.copy_(func(widened, piece.to(wide)))
    return found


def _sum_of_pieces(left: Tensor, right: Tensor, wide: torch.dtype) -> Tensor:
    """The same over inputs, where a piece of the outputs would lie in many places."""
    some = max(1, PIECE_BYTES // (right.shape[1] * wide.itemsize))
    total = left.new_zeros(len(left), right.shape[1], dtype=wide)
    for part, piece in zip(left.split(some, 1), right.split(some), strict=True):
        total.addmm_(part.to(wide), piece.to(wide))
    return total.to(left.dtype)


def _worthwhile(func: Any, args: Any) -> bool:
    place = _LEFT.get(func)
    if place is None and func is not _ATTENTION_BACKWARD:
        return False
    if not args[0].is_cpu or arithmetic(args[0].dtype) == args[0].dtype:
        return False
    if place is None:
        return True
    left, right = args[place : place + 2]
    return bool(min(left.numel(), right.numel()) >= FEW * left.shape[-1])


def widened_products(dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Within it, PyTorch multiplies half-precision matrices on the CPU in the faster way.

    For passes over many tokens; a decode step has too many small operations to look at each.
    `torch.compile`, which makes kernels of its own, sees nothing of it.

    Args:
        dtype: of the model that is run. Where it is multiplied as it is, no operation is looked at:
            to look costs 20 µs each, a tenth of a prompt of 128 tokens on a small model.
    """
    if torch.compiler.is_compiling() or arithmetic(dtype) == dtype:
        return nullcontext()
    return _Widened()


@contextmanager
def widened_floats(model: nn.Module) -> Iterator[torch.dtype]:
    """Within it, a model in half precision computes in float32 where the processor prefers that.

    For training with few tokens a step: there, looking at every operation and rounding its result
    take longer than the products. Trained parameters must be in float32 already, since everything
    in half precision is put back as it was.

    Args:
        model: floats of at most `MOST_WIDENED` bytes are widened; codes stay codes.

    Yields:
        the dtype of the activations inside.
    """
    halves = (t.dtype for t in model.parameters() if t.dtype in (torch.bfloat16, torch.float16))
    dtype = next(halves, torch.float32)
    narrow = [t for t in chain(model.parameters(), model.buffers()) if t.dtype == dtype]
    wide = arithmetic(dtype)
    needed = sum(t.numel() for t in narrow) * wide.itemsize
    if wide == dtype or needed > MOST_WIDENED or any(not t.is_cpu for t in narrow):
        yield dtype
        return
    own = [t.data for t in narrow]
    try:
        for tensor in narrow:
            tensor.data = tensor.data.to(wide)
        with _disable_current_modes():
            yield wide
    finally:
        for tensor, data in zip(narrow, own, strict=True):
            tensor.data = data
