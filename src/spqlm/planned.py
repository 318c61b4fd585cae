"""What stages decided, kept until the run is through: one that was killed decides nothing twice."""

import hashlib
import logging
from functools import cached_property
from pathlib import Path

from torch import Tensor

from spqlm import ranks
from spqlm.cache import RunState
from spqlm.calibration.statistics import Statistics
from spqlm.changes import Plan
from spqlm.kept_files import keep, recall
from spqlm.model.view import ModelView
from spqlm.stages.base import Stage

logger = logging.getLogger(__name__)


class Plans:
    """The plans of one run; stages have to ask in their order."""

    def __init__(self, run: RunState, *words: str) -> None:
        """Beside what else the run keeps.

        Args:
            run: where.
            words: everything that decides plans besides the stages and the text they see.
        """
        # What a stage decides follows from all before it.
        self._hashed = hashlib.blake2b("\0".join(words).encode(), digest_size=12)
        self._run, self._key = run, self._hashed.hexdigest()

    @cached_property
    def _directory(self) -> Path:
        """Not taken before there is something to keep."""
        return self._run.directory("plans", self._key)

    def of(self, stage: Stage, view: ModelView, statistics: Statistics) -> Plan:
        """What the stage decides about the model as it is now, or decided in an earlier run."""
        windows = statistics.windows
        described = f"{stage.key} {stage.model_dump_json()} {tuple(windows.shape)}"
        self._hashed.update(described.encode())
        self._hashed.update(windows.cpu().numpy().tobytes())
        if stage.shapes_decide:
            return stage.plan(view, statistics)
        file = self._directory / f"{stage.key}-{self._hashed.hexdigest()}.safetensors"
        earlier = recall(file, _understood)
        if all(ranks.together(earlier is not None)):
            assert earlier is not None
            logger.info("%s: planned by an earlier run", stage.key)
            return earlier
        plan = stage.plan(view, statistics)
        keep(file, {}, {"plan": plan.model_dump_json()})
        return plan


def _understood(_: dict[str, Tensor], metadata: dict[str, str]) -> Plan:
    return Plan.model_validate_json(metadata["plan"])
