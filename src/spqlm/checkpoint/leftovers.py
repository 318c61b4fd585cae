"""What killed runs left: half of an output, an output's other name, work to go on from."""

import glob
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from spqlm.cache import BEING_WRITTEN, PARTIAL_FILE, UNFINISHED, cache_directory, is_state
from spqlm.locks import SCRATCH, SETTLED_SECONDS, claimed

logger = logging.getLogger(__name__)

REPLACED, PARTIAL = ".replaced-", ".partial-"
_RANDOM = 8 * "[0-9a-f]"
# In the cache no run says what it uses; it may train for hours between two states that it keeps.
_DAY = 24 * 3600

Fate = Literal["removed", "kept", "put back", "cannot be removed"]


@dataclass(frozen=True)
class _Kind:
    """What lies in a directory under names of one pattern.

    Attributes:
        pattern: of the names.
        what: it is.
        goes_on: whether the same command would go on from it.
        settled: seconds after which it counts as left, if nobody uses it.
    """

    pattern: str
    what: str
    goes_on: bool = False
    settled: float = SETTLED_SECONDS


_BESIDE_OUTPUTS = (
    _Kind(f"*{PARTIAL}{_RANDOM}", "half of an output"),
    _Kind(f"*{REPLACED}{_RANDOM}", "an output that was being replaced"),
    _Kind(f"*{UNFINISHED}", "what the same command goes on from", goes_on=True),
)
_IN_THE_CACHE = (
    _Kind(f"**/*{PARTIAL_FILE}", "half of a file"),
    _Kind(f"**/{BEING_WRITTEN}*", "half of a file"),
    _Kind("run-*", "what the same command goes on from", goes_on=True, settled=_DAY),
)
_SCRATCH = (_Kind(f"{SCRATCH}*", "scratch files"),)


class Leftover(BaseModel):
    """Something that a killed run left.

    Attributes:
        path: file or directory.
        bytes: that it takes.
        what: it is.
        fate: what becomes of it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Path
    bytes: int
    what: str
    fate: Fate


def remove_left(out: Path) -> None:
    """Remove what killed runs left beside an output under its name, and say so."""
    for kind in (PARTIAL, REPLACED):
        for path in _left(out, kind):
            with claimed(path) as free:
                if free:
                    remove(path)
                    logger.warning("%s, which a killed run left, is removed", path.name)


def put_back(out: Path) -> None:
    """Give an output its name back that a run was killed over while it replaced it."""
    if os.path.lexists(out):
        return
    left = _left(out, REPLACED)
    if left:
        logger.warning("%s was being replaced when a run was killed; it is put back", out)
        left[-1].rename(out)


def clean(
    directories: Iterable[Path], *, unfinished: bool = False, dry_run: bool = False
) -> list[Leftover]:
    """Remove what killed runs left, and put back what they were replacing.

    What a living process uses is left alone.

    Args:
        directories: that outputs were written to; the cache and the scratch directory are looked
            at as well.
        unfinished: also remove what the same command would go on from.
        dry_run: only say what would be done.

    Returns:
        what was found, with what became of it, or would.
    """
    found = []
    for path, kind in _found(directories):
        with claimed(path, kind.settled) as free:
            if free:
                fate, size = _fate(path, kind, unfinished), _bytes(path)
                if not dry_run:
                    fate = _carried_out(path, fate)
                found.append(Leftover(path=path, bytes=size, what=kind.what, fate=fate))
    return found


def remove(path: Path) -> None:
    """Remove a file or a directory; what is not there, or cannot be removed, stays so."""
    with suppress(OSError):
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)


def _found(directories: Iterable[Path]) -> Iterator[tuple[Path, _Kind]]:
    places: list[tuple[Path, tuple[_Kind, ...]]] = [
        (path, _BESIDE_OUTPUTS) for path in dict.fromkeys(map(Path.resolve, directories))
    ]
    places += [(cache_directory(), _IN_THE_CACHE), (Path(tempfile.gettempdir()), _SCRATCH)]
    for directory, kinds in places:
        for kind in kinds:
            for path in sorted(directory.glob(kind.pattern)):
                if not kind.goes_on or is_state(path):
                    yield path, kind


def _fate(path: Path, kind: _Kind, unfinished: bool) -> Fate:
    if kind.goes_on and not unfinished:
        return "kept"
    name, replaced, _ = path.name.rpartition(REPLACED)
    absent = replaced and not os.path.lexists(path.with_name(name))
    return "put back" if absent else "removed"


def _carried_out(path: Path, fate: Fate) -> Fate:
    if fate == "put back":
        put_back(path.with_name(path.name.rpartition(REPLACED)[0]))
    elif fate == "removed":
        remove(path)
        if os.path.lexists(path):
            return "cannot be removed"
    return fate


def _left(out: Path, kind: str) -> list[Path]:
    """What is called like `out` and a kind of remains, the oldest first."""
    pattern = f"{glob.escape(out.name)}{kind}{_RANDOM}"
    return sorted(out.absolute().parent.glob(pattern), key=lambda path: path.stat().st_mtime)


def _bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
