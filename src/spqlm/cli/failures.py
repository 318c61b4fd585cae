"""One sentence for what ends a command that none of its parts foresaw."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from spqlm.errors import SpqError
from spqlm.units import megabytes

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# As the C library words it, which other libraries pass on.
_NO_MEMORY = re.compile(
    r"can't allocate memory|cannot allocate memory|not enough memory|out of memory|bad_alloc|"
    r"unable to mmap|failed to map segment|insufficient memory|can't start new thread",
    re.IGNORECASE,
)
_NO_SPACE = re.compile(r"no space left on device|disk quota exceeded|file too large", re.IGNORECASE)
_WANTED = re.compile(r"(?:allocate|mmap) (\d+) bytes")
_LESS_MEMORY = {
    "bench": "--one-at-a-time, a smaller --batch or shorter prompts",
    "compare": "a shorter --context or --dtype bfloat16",
    "compress": "--dtype bfloat16, or a recipe with fewer calibration windows or a shorter context",
    "eval": "a shorter --context, --dtype bfloat16, or no --against",
    "inspect": "a shorter --context, or no --against",
}
_LONGEST = 300


def sentence(error: BaseException, command: str) -> str:
    """What to tell the user.

    Args:
        error: that ended the command.
        command: its name.
    """
    causes = list(_causes(error))
    for cause in causes:
        if _short_of_memory(cause):
            return f"error: {_memory(cause, command)}"
        if _short_of_disk(cause):
            return f"error: {_disk(cause)}"
    if isinstance(error, SpqError):
        return f"error: {error}"
    if isinstance(error, OSError) and error.strerror:
        return f"error: {error.strerror}{_named(error)}"
    text = " ".join(str(error).split())[:_LONGEST]
    return f"unexpected {type(error).__name__}: {text}; `spq --debug` shows where"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _short_of_memory(error: BaseException) -> bool:
    if isinstance(error, SpqError):
        return False
    numbered = isinstance(error, OSError) and error.errno == errno.ENOMEM
    return numbered or isinstance(error, MemoryError) or bool(_NO_MEMORY.search(str(error)))


def _short_of_disk(error: BaseException) -> bool:
    if isinstance(error, SpqError):
        return False
    numbered = isinstance(error, OSError) and error.errno in FULL
    return numbered or bool(_NO_SPACE.search(str(error)))


def _memory(error: BaseException, command: str) -> str:
    import psutil

    wanted = _WANTED.search(str(error))
    more = f"{megabytes(int(wanted[1]))} more were" if wanted else "more was"
    free = megabytes(min(psutil.virtual_memory().available, _allowed()))
    less = _LESS_MEMORY.get(command, "a smaller model or --dtype bfloat16")
    return f"out of memory: {more} needed, and at most {free} were free; {less} needs less"


def _allowed() -> int:
    """Bytes that the limit of this process, as `ulimit -v` sets it, leaves."""
    try:
        import resource
    except ImportError:
        return 1 << 62
    import psutil

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return 1 << 62
    return max(limit - psutil.Process().memory_info().vms, 0)


def _disk(error: BaseException) -> str:
    file = getattr(error, "filename", None)
    place = Path(os.fsdecode(file)) if isinstance(file, str | bytes) else Path.cwd()
    while not place.exists():
        place = place.parent
    free = megabytes(shutil.disk_usage(place).free)
    return (
        f"no space to write{_named(error)}: its disk has {free} free, or a quota ends there; free "
        "some, or write to another disk (SPQ_CACHE_DIR and TMPDIR move the cache and scratch files)"
    )


def _named(error: BaseException) -> str:
    file = getattr(error, "filename", None)
    if not isinstance(file, str | bytes):
        return ""
    name = os.fsdecode(file)
    return f" {name!r}" if len(name) < 80 else f" {name[:80]!r}..."
