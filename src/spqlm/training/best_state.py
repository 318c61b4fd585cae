"""How far end-to-end training is, and the best that it passed through on held-out text."""

import logging
import math

from torch import Tensor

from spqlm.training.master_weights import Masters
from spqlm.training.training_state import TrainingState

logger = logging.getLogger(__name__)


class BestState:
    """How far training is, and its best state on held-out text.

    Attributes:
        step: how many are done.
        before: held-out loss at first.
        best: the least until now.
        kept: the state that had it.
        waited: looks at held-out text since then.
        through: whether an earlier run was finished.
    """

    def __init__(self, trained: Masters, state: TrainingState) -> None:
        """Start.

        Args:
            trained: what is trained, from the state before.
            state: where the run is kept.
        """
        self._trained, self._state = trained, state
        self.step, self.before, self.best = 0, math.inf, math.inf
        self.waited, self.through = 0, False
        self.kept = trained.state()

    def resume(self) -> bool:
        """Go on where an earlier run was, if there was one."""
        earlier = self._state.read()
        if earlier is None:
            return False
        tensors, values = earlier
        self.step, self.before, self.best = (values[key] for key in ("step", "before", "best"))
        self.waited, self.through = values.get("waited", 0), values["finished"]
        self.kept = {name: tensors[f"{name}/best"] for name in self.kept}
        if not self.through:
            self._trained.load(tensors)
        return True

    def check(self, found: float) -> None:
        """Take note of the held-out loss after a step."""
        logger.info("step %d, held-out loss %.5f", self.step, found)
        self.waited += 1
        if found < self.best:
            self.best, self.kept, self.waited = found, self._trained.state(), 0
        if self._state.due():
            self._keep(self._trained.masters(), finished=False)

    def finish(self) -> None:
        """Keep the result, which is all that is wanted of a run that is through."""
        self._keep({}, finished=True)

    def _keep(self, masters: dict[str, Tensor], *, finished: bool) -> None:
        best = {f"{name}/best": value for name, value in self.kept.items()}
        values = {"step": self.step, "before": self.before, "best": self.best}
        values |= {"waited": self.waited, "finished": finished}
        self._state.keep(masters | best, values)
