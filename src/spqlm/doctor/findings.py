"""What is slow without need, and what to do about it."""

import os
from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict

from spqlm import native
from spqlm.doctor.facts import Facts
from spqlm.units import gigabytes

LITTLE_MEMORY = 10**9
LITTLE_DISK = 2 * 10**9
REINSTALL = "pip install --force-reinstall --no-deps --no-cache-dir spqlm"


class Finding(BaseModel):
    """One thing that is slow: what it is, why, and the remedy; each a sentence."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    slow: str
    why: str
    remedy: str


def findings(facts: Facts) -> list[Finding]:
    """What is slow, the worst first; nothing where all is well."""
    every = (_native, _kernels, _gpu, _triton, _threads, _busy, _memory, _disk)
    return [Finding(slow=s, why=w, remedy=r) for look in every for s, w, r in look(facts)]


Sentences = Iterator[tuple[str, str, str]]


def _native(facts: Facts) -> Sentences:
    found = facts.native
    if found.problem is None:
        return
    if os.environ.get(native.CHOICE) == "reference":
        remedy = f"Unset {native.CHOICE}."
    elif found.compiler is None:
        remedy = f"Install a C++ compiler (GCC or Clang), then run `{REINSTALL}`."
    else:
        remedy = f"Run `{REINSTALL}`; it compiles with {found.compiler}."
    slow = "Compressed layers run in PyTorch on the processor, several times slower."
    yield slow, f"The native library is not used: {found.problem}.", remedy


def _kernels(facts: Facts) -> Sentences:
    found = facts.native
    best = next(iter(found.available), None)
    if found.kernels != best:
        why = f"{native.CHOICE}={os.environ.get(native.CHOICE)} chooses {found.kernels}."
        yield f"Kernels for {best} are not used.", why, f"Unset {native.CHOICE}."
    elif best == "portable":
        yield (
            "Kernels use no instruction set of this processor.",
            "It has no AVX2, or it is not an x86 processor.",
            "Use a processor with AVX2, AVX-512 or AMX, or a GPU.",
        )


def _gpu(facts: Facts) -> Sentences:
    if facts.gpu.driver and not facts.gpu.names:
        yield (
            "The GPU is not used.",
            f"There is an NVIDIA driver, but torch {facts.versions['torch']} cannot use it.",
            "Install a build of PyTorch for CUDA that suits the driver.",
        )


def _triton(facts: Facts) -> Sentences:
    there = any(package.name == "triton" and package.version for package in facts.packages)
    if facts.gpu.names and not there:
        yield (
            "Compressed layers run in PyTorch on the GPU, slower.",
            "Triton is not installed.",
            "Install the version of triton that this PyTorch asks for.",
        )


def _threads(facts: Facts) -> Sentences:
    threads, cores = facts.threads, facts.cores
    if threads > cores:
        why = f"PyTorch uses {threads} threads on {cores} cores."
        yield "Threads wait for each other.", why, f"Set OMP_NUM_THREADS={cores}."
    elif 2 * threads < cores:  # half is usual: two hardware threads may share a core
        why = f"PyTorch uses {threads} of {cores} cores."
        yield "Most of the processor stands idle.", why, "Unset OMP_NUM_THREADS, or raise it."


def _busy(facts: Facts) -> Sentences:
    if facts.load > facts.cores + 1:
        why = f"{facts.load:.0f} processes want to run on {facts.cores} cores."
        yield "Other programs use the processor.", why, "End them, or wait for them."


def _memory(facts: Facts) -> Sentences:
    if facts.memory_free_bytes < LITTLE_MEMORY:
        why = f"{gigabytes(facts.memory_free_bytes)} of memory are free."
        yield "Models may have to be swapped to disk.", why, "End other programs."


def _disk(facts: Facts) -> Sentences:
    if facts.disk_free_bytes < LITTLE_DISK:
        why = f"{gigabytes(facts.disk_free_bytes)} are free where {facts.cache_directory} is."
        remedy = "Delete files, or set SPQ_CACHE_DIR to a directory on another disk."
        yield "Finished work may not be kept for the next run.", why, remedy
