"""What a stage wants gathered before it plans and changes a model."""

from dataclasses import dataclass

from spqlm.calibration.statistics import Observation


@dataclass(frozen=True)
class Needs:
    """A stage's answer to the one question that it is asked; the default is nothing.

    Attributes:
        observations: activation statistics that `plan` reads.
        sensitivities: full names of modules whose gradient-weighted moments are read.
        windows: whether `apply` runs calibration windows through the model.
        text: whether `apply` trains on calibration text.
        dense: whether `apply` compares with the model as it was before the first stage.
    """

    observations: frozenset[Observation] = frozenset()
    sensitivities: frozenset[str] = frozenset()
    windows: bool = False
    text: bool = False
    dense: bool = False

    @property
    def any_windows(self) -> bool:
        """Whether calibration windows are drawn at all: to observe, or to run through."""
        return bool(self.windows or self.observations or self.sensitivities)
