"""A few trials of each kind; `make fuzz` and `make kill` run thousands."""

import importlib
import os
import signal

import pytest
from tests.fuzz.outcome import in_child

# Trials that take a few seconds together.
TRIALS = {
    "checkpoints": 50,
    "caches": 2,
    "reports": 10,
    "trust": 3,
    "numbers": 4,
    "known": 4,
    "invocations": 6,
    "kills": 4,
    "resumes": 1,
}


@pytest.mark.parametrize("kind", TRIALS)
def test_a_few_trials_find_nothing(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("SPQ_CACHE_DIR", str(tmp_path / "cache"))
    found = importlib.import_module(f"tests.fuzz.{kind}").run(tmp_path, 1, 600, TRIALS[kind])
    assert found.tried >= TRIALS[kind] and not found.faults, str(found)


def hang():
    while True:
        pass


def crash():
    os.kill(os.getpid(), signal.SIGKILL)


def fail():
    raise KeyError("x")


@pytest.mark.parametrize(
    ("work", "fault"), [(hang, "hang"), (crash, "SIGKILL"), (fail, "KeyError")]
)
def test_what_is_a_fault_is_seen(work, fault):
    assert fault in in_child(work, 2.0).fault
