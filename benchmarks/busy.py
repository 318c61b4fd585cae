"""How long the commands take alone, and with one other busy process on the machine.

    python benchmarks/busy.py --model demo --rounds 3

Threads that wait for each other lose far more than the share of the cores that the other process
takes, if they spin while they wait. On two cores everything should take at most 2.5 times as long.
`--spinning` runs each command a second time with OpenMP's own way of waiting, alone, which shows
what the shorter one costs. Rounds are interleaved; the figures are medians of them.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spqlm.cli.threads import CHOSEN
from spqlm.evaluation.machine import machine
from spqlm.model.limits import room
from spqlm.sources.outline import outline

MOST = 2.5
# As OpenMP waits by itself: GNU's default.
OWN_WAY = {"GOMP_SPINCOUNT": "300000"}
# Rests only when who started it is gone, however that ended.
BUSY = "import os\nwhile os.getppid() == {}: pass"
CONTEXT = 512


def commands(model: str, recipe: str, folder: Path) -> dict[str, list[str]]:
    """What is measured, by name; `decode` reads what `compress` wrote."""
    out, context = str(folder / "out"), str(context_of(model))
    return {
        "compress": ["compress", model, out, "--recipe", recipe, "--overwrite"],
        "eval": ["eval", out, "--limit", "4", "--context", context, "--no-cache"],
        "decode": ["generate", out, "--prompt", "The sea was", "--max-new-tokens", "64"],
    }


def context_of(model: str) -> int:
    """Tokens of a window that the model has positions for."""
    found = outline(model)
    return CONTEXT if found is None else CONTEXT + min(room(found.view.model, CONTEXT), 0)


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Other processes that never rest."""
    words = [sys.executable, "-c", BUSY.format(os.getpid())]
    others = [subprocess.Popen(words) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def seconds(words: list[str], folder: Path, extra: dict[str, str]) -> float:
    """Wall time of one command that finds nothing in a cache."""
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        environment = {k: v for k, v in os.environ.items() if k not in CHOSEN}
        environment |= {"SPQ_CACHE_DIR": cache, "TQDM_DISABLE": "1", **extra}
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "spqlm", *words],
            check=True,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return time.perf_counter() - started


def measure(model: str, recipe: str, rounds: int, spinning: bool) -> dict[str, dict[str, float]]:
    """Median seconds of each command, alone, beside a busy process and spinning."""
    ways: dict[str, tuple[int, dict[str, str]]] = {"alone": (0, {}), "busy": (1, {})}
    if spinning:
        ways["alone, spinning"] = (0, OWN_WAY)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        taken: dict[str, dict[str, list[float]]] = {}
        for _ in range(rounds):
            for command, words in commands(model, recipe, folder).items():
                for way, (others, extra) in ways.items():
                    with busy(others):
                        found = seconds(words, folder, extra)
                    taken.setdefault(command, {}).setdefault(way, []).append(found)
    return {
        command: {way: statistics.median(found) for way, found in by_way.items()}
        for command, by_way in taken.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--recipe", default="paper")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--spinning", action="store_true")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    # As an exception, which ends the command that is measured, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    load = os.getloadavg()[0]
    found = measure(arguments.model, arguments.recipe, arguments.rounds, arguments.spinning)
    worst = 0.0
    for command, by_way in found.items():
        ratio = by_way["busy"] / by_way["alone"]
        worst = max(worst, ratio)
        listed = ", ".join(f"{way} {value:.1f} s" for way, value in by_way.items())
        print(f"{command}: {listed}; busy / alone {ratio:.2f}")
    print(f"{machine()}; {os.cpu_count()} cores; load at the start {load:.1f}")
    if arguments.output:
        arguments.output.write_text(
            json.dumps({"machine": machine(), "load": load, "seconds": found}, indent=1)
        )
    if worst > MOST:
        sys.exit(f"{worst:.2f} is more than {MOST}")


if __name__ == "__main__":
    main()
