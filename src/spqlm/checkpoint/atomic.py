"""Directories and files that appear whole or not at all."""

import glob
import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from spqlm.errors import SpqError

logger = logging.getLogger(__name__)

REPLACED = ".replaced-"


def check_output(out: Path, *, overwrite: bool) -> None:
    """Refuse an output that would cost the user something.

    An earlier run that was killed while it replaced `out` may have left it under another name; then
    it is put back first.

    Raises:
        SpqError: `out` is a file, or a directory that is not empty and may not be overwritten.
    """
    _put_back(out)
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise SpqError(f"output {str(out)!r} exists and is not a directory")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise SpqError(
            f"output directory {str(out)!r} is not empty; pass --overwrite to replace it"
        )


def check_output_file(out: Path, *, overwrite: bool) -> None:
    """Refuse a file that would cost the user something.

    Raises:
        SpqError: `out` is a directory, or a file that may not be overwritten.
    """
    if out.is_dir():
        raise SpqError(f"output {str(out)!r} is a directory, but one file is written; name a file")
    if out.exists() and not overwrite:
        raise SpqError(f"output file {str(out)!r} exists; pass --overwrite to replace it")


@contextmanager
def atomic_directory(out: Path, *, overwrite: bool, needed_bytes: int = 0) -> Iterator[Path]:
    """A new directory beside `out` that becomes `out` when the block ends well.

    On any failure, an interrupt included, it is removed, and what `out` held before is untouched.
    A kill that no handler sees leaves only the directory beside it, and between the two renames of
    an overwrite `out` under another name, from where the next run puts it back.

    Args:
        out: final place.
        overwrite: whether a non-empty `out` may be replaced.
        needed_bytes: refuse at once where the disk has less.

    Raises:
        SpqError: see `check_output`; or the disk is full or cannot be written to.
    """
    check_output(out, overwrite=overwrite)
    with _beside(out, needed_bytes) as (partial, final):
        partial.mkdir()
        yield partial
        _publish(partial, final)


@contextmanager
def atomic_file(out: Path, *, overwrite: bool, needed_bytes: int = 0) -> Iterator[Path]:
    """The same for a file: where to write it, and what is there at the end becomes `out`.

    Raises:
        SpqError: see `check_output_file`; or the disk is full or cannot be written to.
    """
    check_output_file(out, overwrite=overwrite)
    with _beside(out, needed_bytes) as (partial, final):
        yield partial
        _settle(partial)
        partial.replace(final)


@contextmanager
def _beside(out: Path, needed_bytes: int) -> Iterator[tuple[Path, Path]]:
    """A free name beside `out`, and `out` itself; what has the name at the end is removed."""
    out = out.absolute()
    partial = out.with_name(f"{out.name}.partial-{secrets.token_hex(4)}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(out.parent).free
        if free < needed_bytes:
            raise SpqError(
                f"the disk of {out.name!r} has {free / 1e6:.0f} MB free, "
                f"but the checkpoint needs {needed_bytes / 1e6:.0f} MB"
            )
        yield partial, out
    except (OSError, SafetensorError) as error:
        raise SpqError(f"cannot write {out.name!r}: {error}") from error
    finally:
        if partial.is_file():
            partial.unlink()
        shutil.rmtree(partial, ignore_errors=True)


def write_text(file: Path, text: str) -> None:
    """Write a UTF-8 file that appears whole or not at all."""
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def _put_back(out: Path) -> None:
    if os.path.lexists(out):
        return
    pattern = f"{glob.escape(out.name)}{REPLACED}{8 * '[0-9a-f]'}"
    left = sorted(out.absolute().parent.glob(pattern), key=lambda folder: folder.stat().st_mtime)
    if left:
        logger.warning("%s was being replaced when a run was killed; it is put back", out)
        left[-1].rename(out)


def _publish(partial: Path, out: Path) -> None:
    for file in partial.rglob("*"):
        if file.is_file():
            _settle(file)
    if not out.exists():
        partial.rename(out)
        return
    replaced = out.with_name(f"{out.name}{REPLACED}{secrets.token_hex(4)}")
    out.rename(replaced)
    try:
        partial.rename(out)
    except BaseException:
        replaced.rename(out)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def _settle(file: Path) -> None:
    """On disk for good, and readable for whom the user's mask lets read."""
    umask = os.umask(0)
    os.umask(umask)
    file.chmod(0o666 & ~umask)  # safetensors writes files that only their owner can read
    with file.open("rb") as handle:
        os.fsync(handle.fileno())
