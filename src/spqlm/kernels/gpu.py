"""Which kernels serve a GPU: those in Triton, or none, and then one line in the log says why."""

import logging
from functools import cache
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

CAPABILITY = (8, 0)
"""The least compute capability whose shared memory and instructions the kernels' tiles suit."""


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
    reason = _why_not(device)
    if reason is not None:
        logger.warning("compressed layers run in PyTorch on this GPU, slower: %s", reason)
        return None
    from spqlm.kernels import triton

    return triton


def _why_not(device: str) -> str | None:
    if device != "cuda":
        return f"there are kernels for NVIDIA's, and this is a device of type {device!r}"
    if torch.version.hip is not None:
        return "there are kernels for NVIDIA's, and this torch is a build for ROCm"
    if find_spec("triton") is None:
        return "triton is not installed; install it in the version that this torch wants"
    found = torch.cuda.get_device_capability()
    if found < CAPABILITY:
        return f"its compute capability is {found[0]}.{found[1]}, and kernels need 8.0"
    return None
