"""Two names that change places in one step, where the system can."""

import ctypes
import os
from pathlib import Path

# From Linux's fcntl.h and fs.h.
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def exchange(first: Path, second: Path) -> bool:
    """Let two directories change places, so that neither name is ever absent.

    Returns:
        whether it was done: not every system and file system can.
    """
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    one, two = os.fsencode(first), os.fsencode(second)
    return bool(renameat2(_AT_FDCWD, one, _AT_FDCWD, two, _RENAME_EXCHANGE) == 0)
