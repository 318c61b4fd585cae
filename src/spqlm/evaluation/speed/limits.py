"""What the machine can do at best: bytes read and products computed per second."""

import time
from collections.abc import Callable

import torch

from spqlm.kernels.widening import arithmetic

# Far beyond the caches of today's processors.
BUFFER_BYTES = 512 << 20
GEMM_WIDTH = 2048
REPEATS = 3


def read_bandwidth(device: str = "cpu", buffer_bytes: int = BUFFER_BYTES) -> float:
    """Bytes per second of a sum over a buffer larger than the caches, by all torch threads.

    Returns:
        the best of three passes.
    """
    buffer = torch.ones(buffer_bytes // 4, device=device)
    return buffer.nbytes / _best(lambda: buffer.sum().item())


def gemm_rate(dtype: torch.dtype, device: str = "cpu", width: int = GEMM_WIDTH) -> float:
    """Floating-point operations per second of a square matrix product in `dtype`.

    Two per multiplication and addition. On a processor that multiplies it faster in float32, that
    is the limit, and is what is timed: in half precision one such product can take minutes there.

    Returns:
        the best of three.
    """
    if device == "cpu":
        dtype = arithmetic(dtype)
    left = torch.ones(width, width, dtype=dtype, device=device)
    right = torch.ones(width, width, dtype=dtype, device=device)
    return 2 * width**3 / _best(lambda: (left @ right)[0, 0].item())


def _best(work: Callable[[], float]) -> float:
    times = []
    for _ in range(1 + REPEATS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times[1:])
