"""How a checkpoint came to be: written beside the weights, read by `inspect` and `eval`."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from spqlm.changes import Plan, Source
from spqlm.errors import CheckpointError

FILE = "spq_manifest.json"
CARD = "README.md"


class CalibrationRecord(BaseModel):
    """The text that a checkpoint was calibrated or tuned on.

    Attributes:
        source: as the user gave it; a file by its name alone.
        origin: what it is.
        sha256: of the text; empty in earlier versions.
        tokens: in the whole text.
        windows: that calibration ran over.
        context: tokens in each.
        begins: tokens that each window begins with, as the tokenizer begins a text.
        fingerprints: of the text, to find overlap with evaluation text.
    """

    model_config = ConfigDict(extra="forbid")

    source: str
    origin: str
    sha256: str = ""
    tokens: int
    windows: int
    context: int
    begins: list[int] = Field(default_factory=list)
    fingerprints: list[str]


class StageRecord(BaseModel):
    """One stage of the run.

    Attributes:
        config: the stage with all its parameters.
        plan: what it did.
        seconds: wall time, calibration of this stage included.
        peak_bytes: most memory the process held meanwhile.
    """

    model_config = ConfigDict(extra="forbid")

    config: dict[str, Any]
    plan: Plan
    seconds: float
    peak_bytes: int


class Sizes(BaseModel):
    """Bytes, and against what.

    Attributes:
        source: weights of the source in its own dtype.
        disk: weight files of the checkpoint.
        resident: weights as loaded.
        fp32: weights of the source, were they float32 (the convention of the SPQ paper).
        read: weights that a decoding step reads for one token, of experts those that it is sent to;
            None in earlier versions.
    """

    model_config = ConfigDict(extra="forbid")

    source: int
    disk: int
    resident: int
    fp32: int
    read: int | None = None


class Forecast(BaseModel):
    """What a run was expected to take, before any weight was read.

    Attributes:
        disk: bytes of the weight files; None where weights or text decide them.
        smallest: the same at the smallest target that the recipe can reach.
        peak: most bytes of memory that the process holds.
        states: bytes of hidden states on disk beside the output, at most.
        layer_by_layer: whether the model is read one layer at a time, since it does not fit.
        read: bytes of weights that a decoding step reads for one token, of experts those that it is
            sent to, were all weights compressed alike; None where `disk` is.
        moments: most bytes that second moments of a layer's weights may take at once; None for as
            many as there are.
        unpacked: bytes of weights on disk beside the output while the run lasts, where a model is
            read one layer at a time whose files do not hold its weights as they are loaded.
        seconds: that the stages and their calibration take on this machine's CPU, by a short
            measurement; None where they cannot be counted or nothing was measured. What an earlier
            run left in the cache comes off.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    disk: int | None
    smallest: int | None
    peak: int
    states: int
    layer_by_layer: bool
    read: int | None = None
    moments: int | None = None
    unpacked: int = 0
    seconds: float | None = None


class Manifest(BaseModel):
    """Everything needed to tell how a checkpoint was made, and to make it again.

    Attributes:
        recipe: with every parameter.
        export_target: that its formats suit, and whose bytes its budget counted.
        seed: of everything random.
        source: the baseline.
        calibration: the text of this run, if it read any.
        seen_before: fingerprints of what the source had been calibrated on, if it was ours.
        stages: in the order they ran.
        sizes: in bytes.
        versions: of the packages that decide the result.
        tensors: SHA-256 of each, by name; see `checkpoint.hashes`. Empty in earlier versions.
        files: SHA-256 of the other files, by name.
        forecast: what was expected; the actual values are `sizes.disk` and the largest
            `peak_bytes` of the stages. None where nothing was, as of a model object.
    """

    model_config = ConfigDict(extra="forbid")

    recipe: dict[str, Any]
    seed: int
    source: Source
    calibration: CalibrationRecord | None
    seen_before: list[str] = Field(default_factory=list)
    stages: list[StageRecord]
    sizes: Sizes
    versions: dict[str, str] = Field(default_factory=dict)
    tensors: dict[str, str] = Field(default_factory=dict)
    files: dict[str, str] = Field(default_factory=dict)
    forecast: Forecast | None = None
    export_target: str | None = None

    @property
    def predicted_loss(self) -> float | None:
        """Nats per token of all changes that were priced; None where none was."""
        losses = [record.plan.predicted_loss for record in self.stages]
        priced = [loss for loss in losses if loss is not None]
        return sum(priced) if priced else None

    @property
    def fingerprints(self) -> list[str]:
        """Of all text that the checkpoint was ever calibrated or tuned on."""
        own = self.calibration.fingerprints if self.calibration else []
        return sorted({*own, *self.seen_before})


def read_manifest(directory: Path) -> Manifest | None:
    """The manifest in `directory`, or None where there is none.

    Raises:
        CheckpointError: it is not one.
    """
    file = directory / FILE
    if not file.is_file():
        return None
    try:
        return Manifest.model_validate_json(file.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{FILE} is damaged: {str(error).splitlines()[0]}") from None


def write_manifest(manifest: Manifest, directory: Path) -> None:
    """Write it into `directory`, where `read_manifest` finds it."""
    (directory / FILE).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
