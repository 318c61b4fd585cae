"""What a stage is: a documented config with a pure plan and an apply that changes the model."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict
from torch import Tensor
from transformers import PreTrainedModel

from spqlm.allocation.limits import Limits
from spqlm.allocation.restriction import Restriction
from spqlm.cache import RunState, work_key
from spqlm.calibration.gather import CalibrationConfig
from spqlm.calibration.needs import Needs
from spqlm.calibration.statistics import Statistics
from spqlm.calibration.work import Work
from spqlm.changes import Plan
from spqlm.data import EncodedText
from spqlm.model.view import ModelView


@dataclass(frozen=True)
class Inputs:
    """What `apply` may read besides the plan.

    Attributes:
        statistics: the same as `plan` saw, with the windows of calibration text if there are any.
        ids: calibration text as tokens; None for stages that do not train.
        seed: for whatever a stage draws.
        dense: the model as it was before the first stage; None for stages that do not compare.
        run: where finished work is kept until the run is through; None keeps nothing.
    """

    statistics: Statistics = field(default_factory=Statistics)
    ids: Tensor | EncodedText | None = None
    seed: int = 0
    dense: PreTrainedModel | None = None
    run: RunState | None = None

    def directory(self, view: ModelView, stage: "Stage", text: Tensor, *words: str) -> Path | None:
        """Where a stage keeps what it finishes, by everything that decides it; None for nowhere.

        Args:
            view: the model, before the stage changes it.
            stage: its settings.
            text: token ids, int64.
            words: whatever else decides the result.
        """
        if self.run is None:
            return None
        words = (stage.model_dump_json(), str(self.seed), *words)
        return self.run.directory(stage.key, work_key(view, text, *words))


NO_INPUTS = Inputs()


class Stage(BaseModel, ABC):
    """A stage's config is the stage itself: `Svd(variance=0.96).plan(view, statistics)`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: ClassVar[str]
    trains: ClassVar[bool] = False

    def needs(self, view: ModelView) -> Needs:
        """What `plan` and `apply` want of calibration; the text alone where the stage trains."""
        return Needs(text=self.trains)

    @property
    def shapes_decide(self) -> bool:
        """Whether `plan` looks at shapes alone, which takes no time."""
        return False

    @property
    def byte_limit(self) -> int | None:
        """Most bytes of all weights on disk; None where the stage was given no such limit."""
        return None

    @property
    def largest_weight(self) -> float | None:
        """Magnitude that the integers it rounds to can store; None of a stage that rounds none."""
        return None

    def within(self, target_bytes: int) -> Self | None:
        """The stage with this `byte_limit`; None for a stage that takes none."""
        return None

    def limited(self, limits: Limits) -> Self | None:
        """The stage with limits of speed and cache; None for a stage that takes none."""
        return None

    def untrained(self) -> Self | None:
        """The stage without its training; None where nothing of it is left."""
        return None if self.trains else self

    def restricted(self, restriction: Restriction) -> Self | None:
        """The stage with what a target asks of stored weights; None for one that chooses none.

        Raises:
            SpqError: it offers nothing that the restriction allows.
        """
        return None

    def savings(self, view: ModelView) -> tuple[int, int] | None:
        """Bytes that the model loses by this stage, and the most that it could lose by it.

        What shapes alone decide, of a model on the meta device, too; None where weights or text
        decide it.

        Raises:
            SpqError: what the stage is asked for is out of reach.
        """
        return planned_savings(self, view) if self.shapes_decide else None

    def work(self, view: ModelView, text: CalibrationConfig) -> Work | None:
        """What takes time in `plan` and `apply`, beside what they need of calibration.

        Of a model on the meta device, too; None where it is not counted.

        Args:
            view: the model.
            text: how much of it there is to calibrate on.
        """
        return None

    @abstractmethod
    def plan(self, view: ModelView, statistics: Statistics) -> Plan:
        """Decide, without changing anything."""

    @abstractmethod
    def apply(self, view: ModelView, plan: Plan, inputs: Inputs = NO_INPUTS) -> None:
        """Change the model as planned.

        Args:
            view: the model that `plan` saw, unchanged since.
            plan: what to do.
            inputs: statistics, and calibration text for stages that train.
        """


def inner_entries(view: ModelView) -> int:
    """How many entries the weights of the decoder layers have, dense or compressed."""
    modules = [named.module for named in view.leaves(("attention", "mlp"))]
    return sum(module.in_features * module.out_features for module in modules)


def planned_savings(stage: Stage, view: ModelView) -> tuple[int, int]:
    """`Stage.savings` of a stage that plans by shapes alone."""
    saved = stage.plan(view, Statistics()).bytes_saved
    return saved, saved
