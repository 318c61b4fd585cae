"""Directories and files that appear whole or not at all."""

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from spqlm.checkpoint.exchange import exchange
from spqlm.checkpoint.leftovers import PARTIAL, REPLACED, put_back, remove, remove_left
from spqlm.errors import SpqError
from spqlm.locks import in_use


def check_output(out: Path, *, overwrite: bool, inputs: Iterable[object] = ()) -> None:
    """Refuse an output that would cost the user something.

    Runs that were killed may have left something: `out` itself under another name, if that was when
    they replaced it, is put back first; what they had begun to write is removed.

    Args:
        out: directory to write.
        overwrite: whether a non-empty one may be replaced.
        inputs: what the run reads; those that name something on disk must not be in `out`.

    Raises:
        SpqError: `out` is a file, or a directory that is not empty and may not be overwritten, or
            in which an input lies, or whose name or place the system does not take.
    """
    _check_name(out)
    try:
        put_back(out)
        remove_left(out)
        _check_place(out)
        if out.is_symlink() or (out.exists() and not out.is_dir()):
            raise SpqError(f"output {str(out)!r} exists and is not a directory")
        filled = out.is_dir() and any(out.iterdir())
    except OSError as error:
        raise SpqError(f"output {_short(out)!r} cannot be used: {error.strerror}") from None
    if filled and not overwrite:
        raise SpqError(
            f"output directory {str(out)!r} is not empty; pass --overwrite to replace it"
        )
    for kept in (*inputs, Path.cwd()) if filled else ():
        if _lies_in(str(kept), out):
            raise SpqError(
                f"output {str(out)!r} holds {str(kept)!r}, which replacing it would delete; name "
                "another directory"
            )


def _check_name(out: Path) -> None:
    try:
        str(out).encode()
    except UnicodeEncodeError:
        raise SpqError(f"output {_short(out)!r} is no name in UTF-8; choose another") from None


def _check_place(out: Path) -> None:
    """Try to make something where `out` will be made, long before it is.

    Raises:
        SpqError: something on the way there is no directory.
        OSError: the system does not take it.
    """
    above = next((p for p in out.absolute().parents if os.path.lexists(p)), out)
    if not above.is_dir():
        raise SpqError(f"output {str(out)!r} cannot be made, since {above.name!r} is no directory")
    tried = above / f"{out.name}{PARTIAL}{secrets.token_hex(4)}"
    tried.mkdir()
    tried.rmdir()


def _lies_in(name: str, out: Path) -> bool:
    with suppress(OSError, ValueError):  # no name of a file
        path = Path(name)
        return path.exists() and path.resolve().is_relative_to(out.resolve())
    return False


def check_output_file(out: Path, *, overwrite: bool) -> None:
    """Refuse a file that would cost the user something.

    Raises:
        SpqError: `out` is a directory, or a file that may not be overwritten, or one whose name or
            place the system does not take.
    """
    _check_name(out)
    try:
        _check_place(out)
    except OSError as error:
        raise SpqError(f"output {_short(out)!r} cannot be used: {error.strerror}") from None
    if out.is_dir():
        raise SpqError(f"output {str(out)!r} is a directory, but one file is written; name a file")
    if out.exists() and not overwrite:
        raise SpqError(f"output file {str(out)!r} exists; pass --overwrite to replace it")


@contextmanager
def atomic_directory(out: Path, *, overwrite: bool, needed_bytes: int = 0) -> Iterator[Path]:
    """A new directory beside `out` that becomes `out` when the block ends well.

    On any failure, an interrupt included, it is removed, and what `out` held before is untouched.
    A kill that no handler sees leaves only the directory beside it, which the next run removes.
    Where the system cannot exchange two directories in one step, a kill between the two renames of
    an overwrite leaves `out` under another name, from where the next run puts it back.

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
        with in_use(partial):
            yield partial
            _publish(partial, final)


@contextmanager
def atomic_file(out: Path, *, overwrite: bool, needed_bytes: int = 0) -> Iterator[Path]:
    """The same for a file: where to write it, and what is there at the end becomes `out`.

    Raises:
        SpqError: see `check_output_file`; or the disk is full or cannot be written to.
    """
    check_output_file(out, overwrite=overwrite)
    remove_left(out)
    with _beside(out, needed_bytes) as (partial, final):
        partial.touch()
        with in_use(partial):
            yield partial
            _settle(partial)
            partial.replace(final)


@contextmanager
def _beside(out: Path, needed_bytes: int) -> Iterator[tuple[Path, Path]]:
    """A free name beside `out`, and `out` itself; what has the name at the end is removed."""
    out = out.absolute()
    partial = out.with_name(f"{out.name}{PARTIAL}{secrets.token_hex(4)}")
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
        remove(partial)


def check_text_file(file: Path, what: str) -> None:
    """Refuse, before minutes of work, a place where `write_text` could not write.

    Args:
        file: to be written later.
        what: it is, for the message.

    Raises:
        SpqError: it is a directory or a device, or the system takes no new file there.
    """
    shown = f"{what} {_short(file)!r}"
    try:
        if file.exists() and not file.is_file():
            raise SpqError(f"{shown} is a directory or a device; name a file")
        if not file.absolute().parent.is_dir():
            raise SpqError(f"{shown} lies in a directory that does not exist; name a file")
        partial = _beside_file(file)
        try:
            partial.touch(exist_ok=False)
        finally:
            partial.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SpqError(f"{shown} cannot be written: {reason}") from error


def write_text(file: Path, text: str) -> None:
    """Write a UTF-8 file that appears whole or not at all.

    Raises:
        SpqError: the disk is full, or the file cannot be written there.
    """
    partial = _beside_file(file)
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(file)
    except OSError as error:
        raise SpqError(f"cannot write {_short(file)!r}: {error.strerror}") from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


# Bytes of a file's name that are seen in the name of what is not that file yet.
LONGEST_NAME = 100


def _beside_file(file: Path) -> Path:
    """A free name for what will be `file`; what killed runs left there is removed."""
    name = file.name.encode()[:LONGEST_NAME].decode(errors="ignore")
    hidden = file.with_name(f".{name}")
    remove_left(hidden)
    return hidden.with_name(f"{hidden.name}{PARTIAL}{secrets.token_hex(4)}")


def _short(path: Path) -> str:
    return str(path) if len(str(path)) < 80 else f"{str(path)[:80]}..."


def _publish(partial: Path, out: Path) -> None:
    for file in partial.rglob("*"):
        if file.is_file():
            _settle(file)
    if not out.exists():
        partial.rename(out)
        return
    if exchange(partial, out):
        return  # What was there has the other name now, and goes with it.
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
