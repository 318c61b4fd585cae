"""Bytes in memory, bytes on disk, and the peak of a piece of work."""

import re
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
from torch import nn

from spqlm.errors import SpqError
from spqlm.modules.linear import Compressed

SAMPLING_SECONDS = 0.02
LIBRARY = re.compile(r"\.so(\.\d+)*$|\.dll$|\.pyd$")


def resident_bytes(model: nn.Module) -> int:
    """Bytes held by a model's parameters and buffers, each distinct storage once.

    What kernels make of them counts, too. Whole storages count: a parameter that is a view keeps
    all of what it views alive. Tensors on the meta device hold nothing.
    """
    sizes: dict[tuple[str, int], int] = {}
    compressed = [module for module in model.modules() if isinstance(module, Compressed)]
    made = [t for module in compressed for t in module.stored_weight.plain.tensors().values()]
    for tensor in (*model.parameters(), *model.buffers(), *made):
        if tensor.device.type == "meta":
            continue
        storage = tensor.untyped_storage()
        sizes[str(tensor.device), storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())


def parameter_count(model: nn.Module) -> int:
    """Number of a model's torch parameters, tied ones once.

    Buffers do not count, so for quantised modules that keep their weights in buffers this is not
    the number of weights that the model stands for.
    """
    return sum(parameter.numel() for parameter in model.parameters())


def weight_file_bytes(directory: str | Path) -> int:
    """Bytes of the `.safetensors` files directly in a directory.

    Raises:
        SpqError: if there are none.
    """
    sizes = [file.stat().st_size for file in Path(directory).glob("*.safetensors")]
    if not sizes:
        raise SpqError(f"'{directory}' has no .safetensors files: it is not a model directory.")
    return sum(sizes)


def library_bytes() -> int:
    """Resident bytes of the shared libraries in this process: code is read when it first runs.

    0 where the system does not tell mappings apart.
    """
    process = psutil.Process()
    if not hasattr(process, "memory_maps"):
        return 0
    return sum(
        found.rss for found in process.memory_maps() if LIBRARY.search(Path(found.path).name)
    )


class PeakMemory:
    """Context manager that watches this process's resident memory.

    A thread samples it every 20 ms, so a shorter peak may be missed. Accelerator memory is not
    included, memory of other threads of this process is.

    Attributes:
        start_bytes: resident bytes on entry.
        peak_bytes: the most seen, from entry to exit; at least `start_bytes`.
        seconds: wall time inside; set on exit.
    """

    def __init__(self) -> None:
        """Prepare; nothing is measured before entry."""
        self.start_bytes = 0
        self.peak_bytes = 0
        self.seconds = 0.0

    def __enter__(self) -> Self:
        """Start to measure, afresh if used before."""
        self._process = psutil.Process()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)
        self.start_bytes = self.peak_bytes = self._resident()
        self._began = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop to measure; exceptions pass."""
        self.seconds = time.perf_counter() - self._began
        self._done.set()
        self._thread.join()
        self.peak_bytes = max(self.peak_bytes, self._resident())

    def _watch(self) -> None:
        while not self._done.wait(SAMPLING_SECONDS):
            self.peak_bytes = max(self.peak_bytes, self._resident())

    def _resident(self) -> int:
        return int(self._process.memory_info().rss)
