"""Whether a GPU can run kernels in Triton."""

from importlib.util import find_spec

import torch

CAPABILITY = (8, 0)
"""The least compute capability whose shared memory and instructions the kernels' tiles suit."""


def why_not(device: str) -> str | None:
    """What keeps Triton's kernels from a type of device such as `cuda`; None where nothing does."""
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
