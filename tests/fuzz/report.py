"""What a run of the fuzzers found."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Report:
    """Trials of one kind, and those that went wrong.

    Attributes:
        kind: what was tried.
        tried: how many.
        faults: a line for each, with what makes it again.
    """

    kind: str
    tried: int = 0
    faults: list[str] = field(default_factory=list)

    def add(self, trial: str, fault: str | None) -> None:
        """Count a trial."""
        self.tried += 1
        if fault is not None:
            self.faults.append(f"{trial}: {fault}")

    def __str__(self) -> str:
        """One line for the whole, one for each fault."""
        head = f"{self.kind}: {self.tried} tried, {len(self.faults)} faults"
        return "\n  ".join([head, *self.faults])


def until(seconds: float, most: int) -> Callable[[int], bool]:
    """Whether there is time for trial number n, of `most`."""
    end = time.monotonic() + seconds
    return lambda number: number < most and time.monotonic() < end
