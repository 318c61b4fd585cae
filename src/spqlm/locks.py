"""Files and directories that a living process uses, told apart from what a killed one left."""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: nothing can be told to be left.
    fcntl = None  # type: ignore[assignment]

# What is being made is locked a moment later; what is older and not locked was left.
SETTLED_SECONDS = 60
SCRATCH = "spq-scratch-"


@contextmanager
def in_use(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Show others that this process lives: the system drops the lock when the process ends.

    Args:
        path: a file or directory that is there.
        shared: whether several processes may use it at once.
    """
    if fcntl is None:
        yield
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # Some network file systems have no locks.
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


@contextmanager
def claimed(path: Path, settled: float = SETTLED_SECONDS) -> Iterator[bool]:
    """Whether no process uses a file or directory; none begins to while the block runs.

    Args:
        path: that may have been left.
        settled: seconds; what was changed later may be used by a process that has not locked it.
    """
    handle = _claim(path, settled)
    try:
        yield handle is not None
    finally:
        if handle is not None:
            os.close(handle)


def _claim(path: Path, settled: float) -> int | None:
    if fcntl is None:
        return None
    handle = None
    with suppress(OSError):  # It is in use, or gone.
        if time.time() - path.stat().st_mtime < settled:
            return None
        handle = os.open(path, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return handle
    if handle is not None:
        os.close(handle)
    return None


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory that is gone afterwards; `spq clean` finds it if the process is killed."""
    with tempfile.TemporaryDirectory(prefix=SCRATCH) as name, in_use(Path(name)):
        yield Path(name)
