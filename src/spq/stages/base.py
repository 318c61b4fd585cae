"""What a stage is: a documented config with a pure plan and an apply that changes the model."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from spq.calibration import Observation, Statistics
from spq.view import ModelView


class Change(BaseModel):
    """What a plan does to one module.

    Attributes:
        module: full name.
        bytes_before: of its parameters, as the model holds them now.
        bytes_after: as the model will hold them.
        details: rank, kept and removed units, granularity: whatever `apply` needs.
    """

    model_config = ConfigDict(extra="forbid")

    module: str
    bytes_before: int
    bytes_after: int
    details: dict[str, Any] = Field(default_factory=dict)


class Plan(BaseModel):
    """All changes of one stage; JSON-able, and everything that `apply` goes by."""

    model_config = ConfigDict(extra="forbid")

    stage: str
    changes: list[Change] = Field(default_factory=list)
    summary: str = ""

    @property
    def bytes_saved(self) -> int:
        """Bytes that the model loses."""
        return sum(change.bytes_before - change.bytes_after for change in self.changes)


@dataclass(frozen=True)
class TrainingText:
    """Calibration text as tokens.

    Attributes:
        ids: int64 [tokens].
        seed: for whatever a stage draws from it.
    """

    ids: Tensor
    seed: int


class Stage(BaseModel, ABC):
    """A stage's config is the stage itself: `Svd(variance=0.96).plan(view, statistics)`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: ClassVar[str]
    trains: ClassVar[bool] = False

    def needs(self, view: ModelView) -> set[Observation]:
        """Activation statistics that `plan` reads; none unless overridden."""
        return set()

    @abstractmethod
    def plan(self, view: ModelView, statistics: Statistics) -> Plan:
        """Decide, without changing anything."""

    @abstractmethod
    def apply(self, view: ModelView, plan: Plan, text: TrainingText | None) -> None:
        """Change the model as planned.

        Args:
            view: the model that `plan` saw, unchanged since.
            plan: what to do.
            text: calibration tokens; given to stages that train.
        """
