"""What is known of a checkpoint: its records, and what was measured, each checked as it is read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from spqlm.checkpoint.manifest import FILE, Manifest, read_manifest
from spqlm.comparison import Comparison
from spqlm.errors import SpqError
from spqlm.evaluation import Evaluation
from spqlm.evaluation.speed import Comparison as Speed
from spqlm.report.layers import Layer, layers

Found = TypeVar("Found")
Record = TypeVar("Record", bound=BaseModel)


@dataclass(frozen=True)
class Evidence:
    """Of one checkpoint.

    Attributes:
        directory: of the checkpoint.
        manifest: how it came to be.
        results: of `spq eval`, the dense model's first.
        comparison: other methods and sizes, by `spq compare`.
        timed: by `spq bench`, the dense model first.
        losses: of single modules in the dense model, by `spq inspect --against`: nats per token.
    """

    directory: Path
    manifest: Manifest
    results: Sequence[Evaluation] = ()
    comparison: Comparison | None = None
    timed: Speed | None = None
    losses: Mapping[str, float] | None = None

    @property
    def name(self) -> str:
        """Of the checkpoint: that of its directory."""
        return self.directory.resolve().name

    @property
    def own(self) -> Evaluation | None:
        """The result of this checkpoint, by the name it was measured under."""
        return next((r for r in self.results if Path(r.model).name == self.name), None)

    @property
    def dense(self) -> Evaluation | None:
        """The first result, if it is another model's."""
        return self.results[0] if self.results and self.results[0] != self.own else None


def read_evidence(
    directory: Path,
    results: Sequence[Path],
    comparison: Path | None,
    bench: Path | None,
    modules: Path | None,
) -> Evidence:
    """Read all files, and refuse what is not what it should be.

    Args:
        directory: of a checkpoint of ours.
        results: files of `spq eval --output`.
        comparison: directory of `spq compare`.
        bench: file of `spq bench --output`; None for the checkpoint's `bench.json`, if any.
        modules: file of `spq inspect --against ... --output`; None likewise for `modules.json`.

    Raises:
        SpqError: not a checkpoint of ours, or a file that is missing, damaged or another one's.
    """
    manifest = read_manifest(directory)
    if manifest is None:
        raise SpqError(f"{str(directory)!r} holds no {FILE}, so it was not written by spq")
    timed = bench or next(directory.glob("bench.json"), None)
    inspected = modules or next(directory.glob("modules.json"), None)
    compared = None if comparison is None else comparison / "comparison.json"
    return Evidence(
        directory,
        manifest,
        [_read(file, "spq eval --output", Evaluation.model_validate_json) for file in results],
        _optional(compared, "spq compare", Comparison),
        _optional(timed, "spq bench --output", Speed),
        None if inspected is None else _losses(directory, inspected),
    )


def _optional(file: Path | None, command: str, kind: type[Record]) -> Record | None:
    return None if file is None else _read(file, command, kind.model_validate_json)


def _read(file: Path, command: str, parse: Callable[[bytes], Found]) -> Found:
    try:
        return parse(file.read_bytes())
    except OSError as error:
        raise SpqError(f"cannot read {str(file)!r}: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        reason = ": ".join(filter(None, [where, first["msg"]]))
        raise SpqError(f"{str(file)!r} is not what `{command}` writes: {reason}") from None


def _losses(directory: Path, file: Path) -> dict[str, float]:
    """Measured loss by module; all of them must be this checkpoint's."""
    rows = _read(file, "spq inspect --against ... --output", TypeAdapter(list[Layer]).validate_json)
    if [(r.module, r.bytes) for r in rows] != [(r.module, r.bytes) for r in layers(directory)]:
        raise SpqError(f"{str(file)!r} describes another checkpoint than {str(directory)!r}")
    return {row.module: row.measured_loss for row in rows if row.measured_loss is not None}
