"""Damaged caches: the result is that of a run without one."""

import shutil
from pathlib import Path
from random import Random

from tests.fuzz.mutate import damage
from tests.fuzz.outcome import in_child
from tests.fuzz.report import Report, until
from tests.helpers import TEXT, tiny_model, tiny_tokenizer

import spqlm
from spqlm.checkpoint.hashes import hash_tensors

SECONDS = 120.0


def run(folder: Path, seed: int, seconds: float, most: int = 100_000) -> Report:
    """Damage one file of the cache, then compress the same model again.

    $SPQ_CACHE_DIR must be `cache` in the folder.
    """
    report, random, going_on = Report("damaged caches"), Random(seed), until(seconds, most)
    text, kept = folder / "text.txt", folder / "kept"
    text.write_text(TEXT)
    stage = {"budget": {"target_bytes": 95_000, "group_sizes": [32]}}
    source = {"source": str(text), "windows": 8, "context": 32}
    recipe = spqlm.Recipe.from_dict({"calibration": source, "stages": [stage]})

    def compress() -> None:
        spqlm.compress(
            tiny_model(), folder / "out", recipe=recipe, tokenizer=tiny_tokenizer(), overwrite=True
        )

    cache = folder / "cache"
    compress()
    right = hash_tensors(folder / "out")
    shutil.copytree(cache, kept)
    while going_on(report.tried):
        shutil.rmtree(cache, ignore_errors=True)
        shutil.copytree(kept, cache)
        files = sorted(path for path in cache.rglob("*") if path.is_file())
        how = damage(random.choice(files), random)
        outcome = in_child(compress, SECONDS)
        fault = outcome.fault or ("it failed" if outcome.status else None)
        if fault is None and hash_tensors(folder / "out") != right:
            fault = "another result"
        report.add(how, fault)
    return report
