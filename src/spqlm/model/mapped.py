"""Weights in mapped files: memory that holds them only while something computes with them.

On the CPU, transformers maps safetensors files in place of reading them. What of a file is in
memory then counts as the process's, although the system could take it back at any time. Inside
`bounded` it is given back as soon as a layer is through, so a process holds a few layers of a
model, however many there are. The next use reads the file again, or the system's cache of it.
"""

import ctypes
import mmap
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from spqlm.formats._shared_scales import forget_steps
from spqlm.model.view import ModelView
from spqlm.numerics.identity import state_of

_MAPPINGS = Path("/proc/self/maps")
# A file that was deleted stays as long as it is mapped.
_SUFFIXES = (".safetensors", ".safetensors (deleted)")
# On a tensor of a mapped file: where it was, and autograd's count of changes to it. Neither tells
# what a fused optimiser does to it; here those train copies.
_MARK = "_spq_mapped"

_hooks: ContextVar[list[RemovableHandle] | None] = ContextVar("hooks", default=None)
_moments: ContextVar[int | None] = ContextVar("moments", default=None)


def supported() -> bool:
    """Whether this system tells which memory is a file's, and takes it back when told."""
    return _MAPPINGS.exists() and hasattr(mmap, "MADV_DONTNEED")


@contextmanager
def bounded(moments: int | None = None) -> Iterator[None]:
    """Inside, weights of mapped files stay in memory only while they are in use.

    Args:
        moments: see `moments_limit`.
    """
    hooks: list[RemovableHandle] = []
    token, limit = _hooks.set(hooks), _moments.set(moments)
    try:
        yield
    finally:
        _moments.reset(limit)
        _hooks.reset(token)
        for hook in hooks:
            hook.remove()


def is_bounded() -> bool:
    """Whether the caller is inside `bounded`."""
    return _hooks.get() is not None


def moments_limit() -> int | None:
    """Most bytes that second moments of a layer's weights may take at once; None for any."""
    return _moments.get()


def mark(module: nn.Module) -> int:
    """Take note of which parameters lie in mapped files, unchanged so far; outside `bounded`, none.

    Returns:
        bytes of parameters that do not.
    """
    spans = _file_spans() if is_bounded() else []
    left = 0
    for parameter in module.parameters():
        if _inside(parameter, spans):
            setattr(parameter, _MARK, state_of(parameter))
        else:
            left += parameter.numel() * parameter.element_size()
    return left


def in_file(tensor: Tensor) -> bool:
    """Whether a tensor lies in a mapped safetensors file now."""
    return _inside(tensor, _file_spans())


def unchanged(tensor: Tensor) -> bool:
    """Whether `mark` took note of a tensor, and it holds what its file does."""
    return getattr(tensor, _MARK, None) == state_of(tensor)


def watch(view: ModelView) -> None:
    """`mark`, and release each part behind its forward pass, until the end of `bounded`."""
    hooks = _hooks.get()
    if hooks is None:
        return
    mark(view.model)
    names = [layer.name for layer in view.layers] + [view.embedding.name, view.lm_head.name]
    hooks += [view.module(name).register_forward_hook(_on_forward) for name in names]


def _on_forward(module: nn.Module, *_: Any) -> None:
    release(module.parameters())


def release(tensors: Iterable[Tensor]) -> None:
    """Give back the memory of tensors that `mark` took note of; outside `bounded`, nothing.

    And whatever was made for kernels of any of them. A tensor that was changed or moved since is
    memory of its own and stays.
    """
    if not is_bounded():
        return
    for tensor in tensors:
        forget_steps(tensor)
        if not unchanged(tensor):
            continue
        # Whole pages: what lies beside the tensor may be changed memory.
        start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        end = tensor.data_ptr() + tensor.numel() * tensor.element_size()
        length = (end - start) // mmap.PAGESIZE * mmap.PAGESIZE
        if length > 0:
            _madvise()(start, length, mmap.MADV_DONTNEED)


def trim() -> None:
    """Give back memory that was freed and that the C library holds; outside `bounded`, nothing."""
    library = ctypes.CDLL(None)
    if is_bounded() and hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


@cache
def _madvise() -> Any:
    function = ctypes.CDLL(None).madvise
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function


def _file_spans() -> list[tuple[int, int]]:
    """Addresses, start and end, at which safetensors files are mapped, ascending."""
    spans = []
    for line in _MAPPINGS.read_text().splitlines():
        if line.endswith(_SUFFIXES):
            start, _, end = line.split(maxsplit=1)[0].partition("-")
            spans.append((int(start, 16), int(end, 16)))
    return sorted(spans)


def _inside(tensor: Tensor, spans: list[tuple[int, int]]) -> bool:
    if tensor.device.type != "cpu":
        return False
    place = bisect_right(spans, (tensor.data_ptr(), 2**64)) - 1
    return place >= 0 and tensor.data_ptr() < spans[place][1]
