"""The compressed model of a cell: gone when it was measured, or kept and taken again."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from spqlm.checkpoint.atomic import write_text
from spqlm.checkpoint.manifest import FILE
from spqlm.evaluation.machine import machine
from spqlm.locks import scratch

MODELS = "models"


class Made(BaseModel):
    """How a model was made.

    Attributes:
        key: of its cell.
        seconds: of compression.
        machine: that it was compressed on.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str
    seconds: float
    machine: str


@contextmanager
def place(name: str, models: Path | None) -> Iterator[Path]:
    """Where the model of a cell goes: in `models`, or in a directory that is gone afterwards."""
    if models is not None:
        yield models / name
        return
    with scratch() as directory:
        yield directory / name


def make(directory: Path, key: str, compress: Callable[[Path], object]) -> Made:
    """Fill a directory, unless it holds what an earlier run made for the same cell.

    Args:
        directory: of the checkpoint; a note beside it says which cell it is of.
        key: of the cell.
        compress: writes a checkpoint whole or not at all, over what is there; what it raises is
            passed on, and no note is left.
    """
    note = directory.with_name(f"{directory.name}.json")
    known = _read(note)
    if known is not None and known.key == key and (directory / FILE).is_file():
        return known
    note.unlink(missing_ok=True)
    started = time.perf_counter()
    compress(directory)
    seconds = round(time.perf_counter() - started, 1)
    made = Made(key=key, seconds=seconds, machine=machine())
    write_text(note, made.model_dump_json())
    return made


def _read(note: Path) -> Made | None:
    try:
        return Made.model_validate_json(note.read_bytes())
    except (OSError, ValidationError):
        return None
