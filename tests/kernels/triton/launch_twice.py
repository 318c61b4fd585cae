"""Launches of compiled kernels on a GPU that is not there; prints a line of JSON for each product.

    TRITON_INTERPRET=0 python -m tests.kernels.triton.launch_twice

Triton compiles for compute capability 9.0 and launches by a driver that keeps what it is given.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver

sys.path.insert(0, str(Path(__file__).parents[3]))

from tests.kernels.triton.test_linear import make, random

from spqlm.kernels.triton import linear

LAUNCHES: list[list[object]] = []


class Launcher:
    """Keeps what a kernel is launched with, tensors by their addresses."""

    def __init__(self, source: object, metadata: object) -> None:
        pass

    def __call__(self, *given: object) -> None:
        x, y, z, _, function, *_ = given[:9]
        addresses = [a.data_ptr() if isinstance(a, torch.Tensor) else str(a) for a in given[9:]]
        LAUNCHES.append([x, y, z, function, addresses])


class Driver:
    """What Triton asks of a GPU."""

    launcher_cls = Launcher
    utils = SimpleNamespace(
        load_binary=lambda name, *_: (name, name, 32, 0, 1024),
        get_device_properties=lambda device: {"max_shared_mem": 227 * 1024},
    )

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def main() -> None:
    driver.set_active(Driver())
    asked = []
    run = JITFunction.run
    JITFunction.run = lambda self, *a, **k: (asked.append(self), run(self, *a, **k))[1]
    for kind, bits, count in (("per_channel", 8, 1), ("64", 4, 1), ("64", 4, 3)):
        asked.clear()
        LAUNCHES.clear()
        stored, _ = make(kind, 64, 1536, torch.bfloat16)
        x = random(3, count, 1536, dtype=torch.bfloat16)
        product = linear.ready(x, stored, None)
        kept = [product(x) for _ in range(3)]  # Alive, so that each has an address of its own.
        names = [launch[3] for launch in LAUNCHES[: len(LAUNCHES) // 3]]
        known = {t.data_ptr() for t in (x, *stored.tensors().values())}
        shown = [
            [a if isinstance(a, str) or a in known else "new" for a in launch[4]]
            for launch in LAUNCHES
        ]
        parts = [shown[first : first + len(names)] for first in range(0, len(shown), len(names))]
        print(
            json.dumps(
                {
                    "what": f"int{bits}, {count}",
                    "kernels": len(set(names)),
                    "asked": len(asked),
                    "launched": len(LAUNCHES),
                    "alike": len(kept) == 3 and all(part == parts[0] for part in parts),
                }
            )
        )


if __name__ == "__main__":
    main()
