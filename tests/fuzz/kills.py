"""Commands killed at any time: nothing is lost, and the same command gives the same result."""

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.outcome import spq
from tests.fuzz.report import Report, until
from tests.helpers import TEXT, tiny_model, tiny_tokenizer

import spqlm
from spqlm.checkpoint.hashes import check_hashes, hash_tensors
from spqlm.checkpoint.leftovers import clean
from spqlm.checkpoint.manifest import read_manifest

RECIPE = """calibration: {{source: {text}, windows: 8, context: 32}}
stages:
- budget: {{target_bytes: 95000, group_sizes: [32]}}
- distill: {{steps: 4, context: 16, held_out: 2, worthwhile: 0.0}}
"""


@dataclass(frozen=True)
class Command:
    """A command that replaces what it wrote before.

    Attributes:
        words: of it.
        written: what it leaves, as something that can be compared; raises where that is not whole.
    """

    words: tuple[object, ...]
    written: Callable[[], Any]


def run(folder: Path, seed: int, seconds: float, most: int = 100_000) -> Report:
    """Kill commands that overwrite their result, and let some of them run through afterwards.

    $SPQ_CACHE_DIR must be `cache` in the folder.
    """
    report, random, going_on = Report("kills"), Random(seed), until(seconds, most)
    outputs, known = folder / "outputs", {}
    for name, command in _commands(folder, outputs).items():
        started = time.monotonic()
        outcome = spq(*command.words, seconds=600)
        if outcome.status:
            raise RuntimeError(f"{name}: {outcome.err}")
        known[name] = (command, time.monotonic() - started, command.written())
    while going_on(report.tried):
        name = random.choice(list(known))
        command, takes, right = known[name]
        if random.random() < 0.5:
            shutil.rmtree(folder / "cache", ignore_errors=True)
        after = random.random() * takes
        killed = _kill(command.words, after)
        fault = _wrong(command, right)
        if fault is None and random.random() < 0.25:
            outcome = spq(*command.words, seconds=600)
            fault = outcome.fault or ("it failed" if outcome.status else _wrong(command, right))
        if fault is None:
            # Now and then work to go on from goes as well.
            fault = _left(outputs, unfinished=random.random() < 0.1)
        when = f"after {after:.2f} s{'' if killed else ', when it was through'}"
        report.add(f"{name}, {when}", fault)
    return report


def _commands(folder: Path, outputs: Path) -> dict[str, Command]:
    source, compressed, text = folder / "source", folder / "compressed", folder / "text.txt"
    outputs.mkdir()
    tiny_model().save_pretrained(source)
    tiny_tokenizer().save_pretrained(source)
    spqlm.compress(source, compressed, recipe="int8")
    text.write_text(TEXT)
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(text=text))
    out, results, dense = outputs / "out", outputs / "results.json", outputs / "dense"
    measured = ("--tasks", text, "--context", 32, "--limit", 8, "--output", results)
    return {
        "compress": Command(
            ("compress", source, out, "--recipe", recipe, "--overwrite"), lambda: _whole(out)
        ),
        "eval": Command(
            ("eval", compressed, "--against", source, *measured), lambda: _figures(results)
        ),
        "export": Command(
            ("export", compressed, "dense", dense, "--overwrite"),
            lambda: sha256((dense / "model.safetensors").read_bytes()).hexdigest(),
        ),
    }


def _whole(out: Path) -> dict[str, str]:
    """Hashes of the tensors of a checkpoint that is whole."""
    manifest = read_manifest(out)
    if manifest is None or not manifest.tensors:
        raise ValueError("the checkpoint has no manifest")
    check_hashes(out, manifest)
    spqlm.load(out)
    return hash_tensors(out)


def _figures(results: Path) -> Any:
    """What `spq eval` measured, without what it cost."""
    found = json.loads(results.read_text())
    for task in found["tasks"]:
        del task["effort"]
    return found


def _wrong(command: Command, right: Any) -> str | None:
    """What is wrong with what is there: always a whole result, and the same one."""
    try:
        return None if command.written() == right else "another result"
    except (OSError, ValueError, spqlm.SpqError) as error:
        return f"the result is gone or not whole: {error}"


def _left(outputs: Path, unfinished: bool) -> str | None:
    """What `spq clean` misses of what killed runs left, as if a minute were over."""
    for path in outputs.iterdir():
        os.utime(path, (0, 0))
    clean([outputs], unfinished=unfinished)
    known = {"out", "results.json", "dense"} | (set() if unfinished else {"out.unfinished"})
    kept = {path.name for path in outputs.iterdir()} - known
    return f"{min(kept)} is not removed" if kept else None


def _kill(words: tuple[object, ...], after: float) -> bool:
    child = os.fork()
    if child == 0:
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        try:
            from spqlm.cli import main

            sys.argv = ["spq", *map(str, words)]
            main()
        finally:
            os._exit(0)
    time.sleep(after)
    ended, _ = os.waitpid(child, os.WNOHANG)
    if not ended:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return not ended
