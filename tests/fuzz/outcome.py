"""What came of a piece of work in a process of its own, and whether that is a fault."""

import faulthandler
import os
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from spqlm.errors import SpqError

# Of bad input: typer's own words about options, or ours in one sentence.
SAID = ("spq: error: ", "Usage: ", "spq: interrupted")
# On a machine with other work a process waits for its turn, which is not a hang.
WALL = 10


@dataclass(frozen=True)
class Outcome:
    """How a process ended.

    Attributes:
        status: exit status; minus the signal that ended it; None where it had to be killed.
        out: standard output.
        err: standard error.
    """

    status: int | None
    out: str
    err: str

    @property
    def fault(self) -> str | None:
        """What no input may cause; None where there was a result or a sentence."""
        if self.status is None:
            return "hang" + "".join(f", {place}" for place in _places(self.err))
        if self.status < 0:
            return f"crash: {signal.Signals(-self.status).name}"
        lines = self.err.strip().splitlines() or [""]
        if "Traceback" in self.err or "spq: unexpected" in self.err:
            return f"traceback: {lines[-1][:300]}"
        said = [line for line in lines if line.lstrip().startswith(SAID)]
        if self.status and not said:
            return f"status {self.status} without a sentence: {lines[-1][:300]}"
        if len([line for line in said if line.startswith("spq: error")]) > 1:
            return "more than one sentence"
        return None


def in_child(work: Callable[[], object], seconds: float, within: Path | None = None) -> Outcome:
    """Run `work` in a fork of this process, which has everything imported.

    Args:
        work: status 0 where it returns, 1 where it raises an `SpqError`.
        seconds: of its processor's time after which it hangs, or ten times as many by the clock.
        within: the directory that it works in; a new one if None.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        child = os.fork()
        if child == 0:
            _run(work, out, err, within or Path(folder))
        status = _wait(child, seconds)
        texts = (file.read_text(errors="replace") if file.exists() else "" for file in (out, err))
        return Outcome(status, *texts)


def spq(*words: object, seconds: float = 60.0, within: Path | None = None) -> Outcome:
    """Run a command line; see `in_child`."""

    def work() -> None:
        from spqlm.cli import main

        sys.argv = ["spq", *map(str, words)]
        main()

    return in_child(work, seconds, within)


def _places(err: str) -> list[str]:
    """Where the innermost calls of a process that was asked were."""
    found = re.findall(r'File "([^"]*)", line (\d+) in (\S+)', err)
    return [f"{Path(file).name}:{line} {name}" for file, line, name in found[:4]]


def _run(work: Callable[[], object], out: Path, err: Path, within: Path) -> None:
    status = 1
    try:
        # Names that are odd may be written to, and go with the folder.
        os.chdir(within)
        for stream, file in ((1, out), (2, err)):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdin = open(0, closefd=False)
        sys.stdout, sys.stderr = (open(n, "w", closefd=False, encoding="utf-8") for n in (1, 2))
        faulthandler.register(signal.SIGUSR1, file=2, all_threads=False)
        work()
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except SpqError as error:
        print(f"spq: error: {error}", file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _wait(child: int, seconds: float) -> int | None:
    until, process = time.monotonic() + WALL * seconds, psutil.Process(child)
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        times = process.cpu_times()
        if times.user + times.system > seconds:
            break
        time.sleep(0.01)
    os.kill(child, signal.SIGUSR1)  # It says where it is.
    time.sleep(0.5)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None
