"""Which kernels serve a GPU: those in Triton, or none, and then one line in the log says why."""

import logging
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from spqlm.native.gpu import why_not

logger = logging.getLogger(__name__)


def kernels_for(x: Tensor) -> ModuleType | None:
    """`spqlm.kernels.triton`, imported by the first x on a GPU that it serves.

    None for other devices, where PyTorch computes or the native library does, and while
    `torch.compile` or `torch.export` traces a model.
    """
    if x.is_cpu or x.is_meta or torch.compiler.is_compiling():
        return None
    return kernels_on(x.device.type)


@cache
def kernels_on(device: str) -> ModuleType | None:
    """The same for a type of device such as `cuda`; asked once, for no kind of GPU changes."""
    reason = why_not(device)
    if reason is not None:
        logger.warning("compressed layers run in PyTorch on this GPU, slower: %s", reason)
        return None
    from spqlm.kernels import triton

    return triton
