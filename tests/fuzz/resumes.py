"""Every recipe killed at every tenth of its time: what was finished is not done again."""

import os
import shutil
import signal
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.outcome import in_child
from tests.fuzz.report import Report, until
from tests.helpers import tiny_model, tiny_tokenizer

import spqlm
from spqlm.checkpoint.hashes import hash_tensors
from spqlm.recipe import load_recipe, shipped
from spqlm.training.training_state import TrainingState

# In place of what the recipes state, for a model that takes seconds.
SMALL = {
    **{"windows": 8, "priced_windows": 4, "context": 24, "held_out": 2, "multiple_of": 8},
    **{"steps": 6, "check_every": 2, "batch_size": 1},
}
# Of the recipe that spends bytes; without a target it only quantises.
RATIO = 0.3
SECONDS = 120.0


def run(folder: Path, seed: int, seconds: float, most: int = 100_000) -> Report:
    """Kill each recipe at each tenth, in an order drawn from the seed, and run it again.

    $SPQ_CACHE_DIR must be `cache` in the folder.
    """
    report, going_on = Report("recipes killed at each tenth"), until(seconds, most)
    source = folder / "source"
    tiny_model().save_pretrained(source)
    tiny_tokenizer().save_pretrained(source)
    trials = [(name, tenth) for name in shipped() for tenth in range(1, 10)]
    whole: dict[str, tuple[float, dict[str, str]]] = {}
    for name, tenth in Random(seed).sample(trials, len(trials)):
        if not going_on(report.tried):
            break
        if name not in whole:
            whole[name] = _through(folder, source, name)
        takes, right = whole[name]
        _clear(folder)
        status, kept, _ = _compress(folder, source, name, takes * tenth / 10)
        again = []
        if not (folder / "out").exists():  # Else it was through already, and only ended later.
            status, again, _ = _compress(folder, source, name)
        twice = sorted(set(kept) & set(again))
        fault = f"done again: {', '.join(twice)}" if twice else None
        if hash_tensors(folder / "out") != right:
            fault = f"another result, or none (status {status})"
        report.add(f"{name} at {tenth}/10, {len(kept)} kept, {len(again)} left", fault)
    return report


def _through(folder: Path, source: Path, name: str) -> tuple[float, dict[str, str]]:
    """What a run takes that nobody kills, in seconds of the processor, and its tensors."""
    _clear(folder)
    status, _, takes = _compress(folder, source, name)
    if status:
        raise RuntimeError(f"recipe {name!r} fails on a small model")
    return takes, hash_tensors(folder / "out")


def _clear(folder: Path) -> None:
    for name in ("cache", "out", "out.unfinished"):
        shutil.rmtree(folder / name, ignore_errors=True)


def _compress(
    folder: Path, source: Path, name: str, until: float | None = None
) -> tuple[int | None, list[str], float]:
    """Compress in a process of its own, which dies after some of its processor's time.

    Returns:
        its exit status, what it kept on disk (of training: states by step), and its time.
    """
    log = folder / "log"
    log.unlink(missing_ok=True)
    recipe = spqlm.Recipe.from_dict(_small(load_recipe(name).to_dict()))
    ratio = RATIO if name == "default" else None

    def work() -> None:
        _tell(folder, log)
        # By its default this signal ends a process at once, as SIGKILL does.
        signal.setitimer(signal.ITIMER_PROF, until or 0)
        spqlm.compress(source, folder / "out", recipe=recipe, target_ratio=ratio)

    before = os.times()
    outcome = in_child(work, SECONDS)
    after = os.times()
    takes = sum(after[2:4]) - sum(before[2:4])
    kept = log.read_text().splitlines() if log.exists() else []
    return outcome.status, kept, takes


def _small(value: Any) -> Any:
    if isinstance(value, list):
        return [_small(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {
        key: SMALL[key] if key in SMALL and isinstance(one, int) else _small(one)
        for key, one in value.items()
    }


def _tell(folder: Path, log: Path) -> None:
    """Write down whatever this process keeps, at once, so that a kill loses no line."""
    line = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    rename, keep, read = Path.replace, TrainingState.keep, TrainingState.read
    found_at: dict[Path | None, int] = {}

    def renamed(self: Path, target: Path) -> Path:
        found = rename(self, target)
        if target.name != "training.safetensors" and target.suffix == ".safetensors":
            os.write(line, f"{target.relative_to(folder)}\n".encode())
        return found

    def kept(self: TrainingState, tensors: Any, values: Any) -> None:
        keep(self, tensors, values)
        if values["step"] > found_at.get(self._file, 0):  # Else nothing was trained for it.
            os.write(line, f"{self._file} step {values['step']}\n".encode())

    def taken_up(self: TrainingState) -> Any:
        found = read(self)
        found_at[self._file] = 0 if found is None else found[1]["step"]
        return found

    Path.replace, TrainingState.keep, TrainingState.read = renamed, kept, taken_up
    TrainingState.due = lambda self: True
