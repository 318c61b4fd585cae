"""Commands killed at any time: nothing is lost, and the same command gives the same result."""

import os
import shutil
import signal
import sys
import time
from pathlib import Path
from random import Random

from tests.fuzz.outcome import spq
from tests.fuzz.report import Report, until
from tests.helpers import TEXT, tiny_model, tiny_tokenizer

import spqlm
from spqlm.checkpoint.hashes import check_hashes, hash_tensors
from spqlm.checkpoint.manifest import read_manifest

RECIPE = """calibration: {{source: {text}, windows: 8, context: 32}}
stages:
- budget: {{target_bytes: 95000, group_sizes: [32]}}
- distill: {{steps: 4, context: 16, held_out: 2, worthwhile: 0.0}}
"""


def run(folder: Path, seed: int, seconds: float, most: int = 100_000) -> Report:
    """Overwrite a checkpoint and kill that at a random time; then let it run through.

    $SPQ_CACHE_DIR must be `cache` in the folder.
    """
    report, random, going_on = Report("kills"), Random(seed), until(seconds, most)
    source, out = folder / "source", folder / "out"
    tiny_model().save_pretrained(source)
    tiny_tokenizer().save_pretrained(source)
    (folder / "text.txt").write_text(TEXT)
    (folder / "recipe.yaml").write_text(RECIPE.format(text=folder / "text.txt"))
    words = ("compress", source, out, "--recipe", folder / "recipe.yaml", "--overwrite")
    started = time.monotonic()
    spq(*words, seconds=600)
    takes, right = time.monotonic() - started, hash_tensors(out)
    shutil.rmtree(folder / "cache", ignore_errors=True)
    while going_on(report.tried):
        after = random.random() * takes
        killed = _kill(words, after)
        fault = _lost(out)
        if fault is None and random.random() < 0.25:
            outcome = spq(*words, seconds=60 + 20 * takes)
            fault = outcome.fault or ("it failed" if outcome.status else None)
            if fault is None and hash_tensors(out) != right:
                fault = "another result after the kill"
            if random.random() < 0.5:
                shutil.rmtree(folder / "cache", ignore_errors=True)
        report.add(f"after {after:.2f} s{'' if killed else ', when it was through'}", fault)
    return report


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


def _lost(out: Path) -> str | None:
    """What is wrong with the checkpoint that is there: always a whole one."""
    if not out.is_dir():
        return "the checkpoint is gone"
    try:
        manifest = read_manifest(out)
        if manifest is None or not manifest.tensors:
            return "the checkpoint has no manifest"
        check_hashes(out, manifest)
        spqlm.load(out)
    except spqlm.SpqError as error:
        return f"the checkpoint is not whole: {error}"
    return None
