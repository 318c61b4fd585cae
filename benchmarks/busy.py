"""How long the commands take alone, and with one other busy process on the machine.

    python benchmarks/busy.py --model demo --minutes 9

Threads that wait for each other lose far more than the share of the cores that the other process
takes, if they spin while they wait. On two cores everything should take at most 2.5 times as long
as alone, and alone no longer than with OpenMP's own way of waiting. The ways of a command follow
one another, and its figures are medians of as many rounds as there is time for; `--only` leaves
commands out. A run that takes three times as long as alone is ended there and shown with `>`. Exit
status 1 says that something took too long, or was not measured for want of time.
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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml

from spqlm.cli.threads import CHOSEN
from spqlm.evaluation.machine import machine
from spqlm.model.limits import room
from spqlm.recipe import load_recipe
from spqlm.sources.outline import outline

MOST = 2.5
# Alone, beside OpenMP's own way; medians of few runs differ by some percent.
MOST_ALONE = 1.1
# A run that takes so many times as long as alone is ended.
ENDED = 3
# Other busy processes, and what is set in the environment: OpenMP waits by itself as GNU's does.
WAYS: dict[str, tuple[int, dict[str, str]]] = {
    "alone": (0, {}),
    "alone, spinning": (0, {"GOMP_SPINCOUNT": "300000"}),
    "busy": (1, {}),
}
# Rests only when who started it is gone, however that ended.
BUSY = "import os\nwhile os.getppid() == {}: pass"
CONTEXT, TOKENS = 512, 1024
# GPTQ and a decomposition for every weight; gradients of a few windows.
ROUNDED = {
    "calibration": {"source": "builtin", "windows": 8, "context": 256},
    "stages": [{"budget": {"rounding_int8": "gptq", "formats": ["int8"]}}],
}
# Of the recipe `paper`, in which training takes minutes.
STEPS = 20

RECIPES = ("paper", "gptq")
COMMANDS = ("eval", "decode", *(f"compress, {name}" for name in RECIPES))

Taken = dict[str, dict[str, list[float]]]


def commands(model: str, folder: Path) -> dict[str, list[str]]:
    """What is measured, by name, the shortest first; `eval` and `decode` read `folder`/int8."""
    context, tokens = str(fitting(model, CONTEXT)), fitting(model, TOKENS)
    found, int8 = {}, str(folder / "int8")
    found["eval"] = ["eval", int8, "--limit", "4", "--context", context, "--no-cache"]
    found["decode"] = ["generate", int8, "--prompt", "The sea"]
    found["decode"] += ["--max-new-tokens", f"{tokens // 2}"]
    for name, recipe in zip(RECIPES, (short_paper(), ROUNDED), strict=True):
        file = folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump(recipe))
        out = str(folder / "out")
        found[f"compress, {name}"] = ["compress", model, out, "--recipe", str(file), "--overwrite"]
    return found


def short_paper() -> dict[str, object]:
    """The recipe `paper` with less training and text that every model has positions for."""
    recipe = load_recipe("paper").to_dict()
    recipe["calibration"] |= {"windows": 8, "context": 64}
    for stage in recipe["stages"]:
        for settings in stage.values():
            if "steps" in settings:
                settings |= {"steps": STEPS, "context": 64}
    return recipe


def fitting(model: str, tokens: int) -> int:
    """So many tokens, or as many as the model has positions for."""
    found = outline(model)
    return tokens if found is None else tokens + min(room(found.view.model, tokens), 0)


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


def seconds(words: list[str], folder: Path, extra: dict[str, str], limit: float | None) -> float:
    """Wall time of one command that finds nothing in a cache; `limit` where it takes longer."""
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        environment = {k: v for k, v in os.environ.items() if k not in CHOSEN}
        environment |= {"SPQ_CACHE_DIR": cache, "TQDM_DISABLE": "1", **extra}
        started = time.perf_counter()
        try:
            subprocess.run(
                [sys.executable, "-m", "spqlm", *words],
                check=True,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=limit,
            )
        except subprocess.TimeoutExpired as late:
            return late.timeout
        return time.perf_counter() - started


def one_round(words: list[str], folder: Path, taken: dict[str, list[float]]) -> None:
    """A command in every way, one after the other."""
    for way, (others, extra) in WAYS.items():
        limit = ENDED * taken["alone"][-1] if taken.get("alone") and way != "alone" else None
        with busy(others):
            taken.setdefault(way, []).append(seconds(words, folder, extra, limit))


def measure(model: str, minutes: float, only: Sequence[str] = COMMANDS) -> Taken:
    """Seconds of each command in each way: a round of all, then others while there is time."""
    end = time.perf_counter() + 60 * minutes
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wanted = {n: words for n, words in commands(model, folder).items() if n in only}
        seconds(["compress", model, str(folder / "int8"), "--recipe", "int8"], folder, {}, None)
        taken: Taken = {command: {} for command in wanted}
        longest = dict.fromkeys(wanted, 0.0)
        while wanted:
            for command in list(wanted):
                started = time.perf_counter()
                if started + longest[command] > end:
                    del wanted[command]
                    continue
                one_round(wanted[command], folder, taken[command])
                longest[command] = max(longest[command], time.perf_counter() - started)
                print(f"{command}: {len(taken[command]['alone'])} rounds", file=sys.stderr)
    return taken


def lines(taken: Taken) -> tuple[list[str], list[str]]:
    """A table of medians, and what took too long."""
    table = [f"{'':18} rounds  " + "".join(f"{way:>17}" for way in WAYS) + "   busy   spinning"]
    wrong = []
    for command, by_way in taken.items():
        if not by_way:
            wrong.append(f"{command} was not measured; give more --minutes")
            continue
        medians = {way: statistics.median(found) for way, found in by_way.items()}
        alone = medians["alone"]
        beside, own = medians["busy"] / alone, alone / medians["alone, spinning"]
        ended = ">" if beside >= 0.99 * ENDED else ""
        shown = "".join(f"{value:15.1f} s" for value in medians.values())
        count = len(by_way["alone"])
        table.append(f"{command:18} {count:6}  {shown} {ended:>2}{beside:.2f} ×{own:8.2f} ×")
        if beside > MOST:
            wrong.append(f"{command} takes {beside:.2f} times as long beside another, not {MOST}")
        if own > MOST_ALONE:
            wrong.append(f"{command} takes {own:.2f} times as long alone as it did by spinning")
    return table, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--only", nargs="+", choices=COMMANDS, default=COMMANDS, metavar="NAME")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    # As an exception, which ends the command that is measured, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    load = os.getloadavg()[0]
    taken = measure(arguments.model, arguments.minutes, arguments.only)
    table, wrong = lines(taken)
    print("\n".join(table))
    print(f"{machine()}; {os.cpu_count()} cores; load at the start {load:.1f}")
    print("busy: beside another process / alone; spinning: alone / alone with OpenMP's waiting")
    if arguments.output:
        found = {"machine": machine(), "load": load, "seconds": taken}
        arguments.output.write_text(json.dumps(found, indent=1))
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
