"""One method at one size: what is kept of it on disk."""

import json
import logging
import shlex
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)

from spqlm.checkpoint.atomic import write_text
from spqlm.evaluation import TaskResult
from spqlm.evaluation.journal import digest

logger = logging.getLogger(__name__)

# A size counts as matched within this share of it.
TOLERANCE = 0.02


class Cell(BaseModel):
    """A method at a size, with how to make it again.

    Attributes:
        method: a key of `METHODS`.
        target: bytes asked for; None for a method that has a size of its own.
        status: `done`, or `skipped` where the method has no such size or cannot do this model.
        reason: why it was skipped or is not matched; else empty.
        bytes: of the result, counted as `counted` says.
        counted: the weight `file`, or the `packed` form that sparse weights could have.
        disk: bytes of the weight file.
        commands: that make and measure it, with the recipe beside this file.
        recipe: with every parameter.
        seed: of everything random.
        seconds: of compression.
        machine: that it was last compressed on.
        tasks: what it scores, by task as it was asked for.
        key: hash of everything that decides what it scores.
        checksum: of all the above, as it was written.
    """

    model_config = ConfigDict(extra="forbid")

    method: str
    target: PositiveInt | None
    status: Literal["done", "skipped"]
    reason: str = ""
    bytes: NonNegativeInt | None = None
    counted: Literal["file", "packed"] = "file"
    disk: NonNegativeInt | None = None
    commands: list[str] = []
    recipe: dict[str, Any]
    seed: int
    seconds: NonNegativeFloat | None = None
    machine: str = ""
    tasks: dict[str, TaskResult] = {}
    key: str
    checksum: str = ""

    @property
    def name(self) -> str:
        """Of its files."""
        return cell_name(self.method, self.target)

    @property
    def matched(self) -> bool:
        """Whether it has the size asked for; a method with a size of its own always has."""
        if self.target is None or self.bytes is None:
            return self.bytes is not None
        return is_matched(self.bytes, self.target)


class Comparison(BaseModel):
    """All cells of a model, as `spq compare` writes them.

    Attributes:
        model: as the user gave it.
        cells: in the order they were asked for.
    """

    model_config = ConfigDict(extra="forbid")

    model: str
    cells: list[Cell]

    @model_validator(mode="after")
    def _unchanged(self) -> Self:
        for cell in self.cells:
            if cell.checksum and cell.checksum != _checksum(cell):
                raise ValueError(f"cell {cell.name!r} is not what was measured")
        return self


def is_matched(size: float, target: int) -> bool:
    """Whether a size is within 2 % of the one asked for."""
    return abs(size - target) <= TOLERANCE * target


def cell_name(method: str, target: int | None) -> str:
    """Of a cell's files: `gptq@90.0MB`."""
    size = "own" if target is None else f"{target / 1e6:.1f}MB"
    return f"{method.replace(':', '')}@{size}"


def read_cell(directory: Path, name: str) -> Cell | None:
    """A cell measured earlier; None where there is none, or, with a warning, a damaged one."""
    file = directory / f"{name}.json"
    try:
        cell = Cell.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError):
        cell = None
    if cell is None or cell.checksum != _checksum(cell) or cell.name != name:
        logger.warning("%s is not what was written; it is not used", file.name)
        return None
    return cell


def write_cell(directory: Path, cell: Cell) -> None:
    """Write it where `read_cell` finds it."""
    cell.checksum = _checksum(cell)
    write_text(directory / f"{cell.name}.json", cell.model_dump_json(indent=1))


def _checksum(cell: Cell) -> str:
    return digest([json.loads(cell.model_dump_json(exclude={"checksum"}))])


def command(*parts: object) -> str:
    """A command line as one would type it."""
    return shlex.join(str(part) for part in parts)
