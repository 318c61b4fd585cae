"""What a stage wants gathered before it plans and changes a model."""

from dataclasses import dataclass, field

from spqlm.calibration.statistics import Observation


@dataclass(frozen=True)
class Needs:
    """A stage's answer to the one question that it is asked; the default is nothing.

    Two are equal where they want the same, whatever memory that takes.

    Attributes:
        observations: activation statistics that `plan` reads.
        sensitivities: full names of modules whose gradient-weighted moments are read.
        windows: whether `apply` runs calibration windows through the model.
        text: whether `apply` trains on calibration text.
        dense: whether `apply` compares with the model as it was before the first stage.
        beside: whether `apply` takes windows through the layers as they were beside them.
        apart: whether second moments may be gathered for some weights of a layer after others.
        training: bytes that training end to end takes, beside the model and its activations.
        tables: float32 tables of the embedding's size that are held to price or to round it.
    """

    observations: frozenset[Observation] = frozenset()
    sensitivities: frozenset[str] = frozenset()
    windows: bool = False
    text: bool = False
    dense: bool = False
    beside: bool = field(default=False, compare=False)
    apart: bool = field(default=False, compare=False)
    training: int = field(default=0, compare=False)
    tables: int = field(default=0, compare=False)

    @property
    def any_windows(self) -> bool:
        """Whether calibration windows are drawn at all: to observe, or to run through."""
        return bool(self.windows or self.observations or self.sensitivities)
