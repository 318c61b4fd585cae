"""Damaged checkpoints: each is refused in a sentence, or is what was written."""

import shutil
from pathlib import Path
from random import Random

import torch
from tests.fuzz.mutate import damage
from tests.fuzz.outcome import in_child
from tests.fuzz.report import Report, until
from tests.helpers import logits, tiny_model, tiny_tokenizer

import spqlm

RECIPES = {
    "int8": {"stages": ["quantize"]},
    "low rank": {"stages": [{"svd": {"variance": 0.5, "multiple_of": 8}}, "quantize"]},
    "dense": {"stages": []},
}
# Loaded one after another in a process; one that crashes takes the others with it.
BATCH = 25
SECONDS = 20.0


def run(folder: Path, seed: int, seconds: float, most: int = 100_000) -> Report:
    """Damage copies of a few checkpoints and load them with `verify=True`."""
    report, random, going_on = Report("damaged checkpoints"), Random(seed), until(seconds, most)
    whole = {}
    for name, recipe in RECIPES.items():
        spqlm.compress(
            tiny_model(),
            folder / name,
            recipe=spqlm.Recipe.from_dict(recipe),
            tokenizer=tiny_tokenizer(),
        )
        whole[name] = logits(spqlm.load(folder / name))
    while going_on(report.tried):
        _batch(folder, random, whole, report)
    return report


def _batch(folder: Path, random: Random, whole: dict[str, torch.Tensor], report: Report) -> None:
    mutants = []
    for number in range(BATCH):
        name, place = random.choice(list(whole)), folder / f"mutant{number}"
        shutil.copytree(folder / name, place)
        file = random.choice(sorted(path for path in place.iterdir() if path.suffix != ".md"))
        mutants.append((name, place, damage(file, random)))
    left = mutants
    while left:
        outcome = in_child(lambda left=left: _load(left, whole), SECONDS)
        lines = outcome.out.splitlines()
        for (name, _, how), line in zip(left, lines, strict=False):
            report.add(f"{name}, {how}", None if line in ("same", "refused") else line)
        if len(lines) < len(left):  # the process ended within this one
            name, _, how = left[len(lines)]
            report.add(f"{name}, {how}", outcome.fault or "the process ended")
        left = left[len(lines) + 1 :]
    for _, place, _ in mutants:
        shutil.rmtree(place)


def _load(mutants: list[tuple[str, Path, str]], whole: dict[str, torch.Tensor]) -> None:
    for name, place, _ in mutants:
        try:
            found = logits(spqlm.load(place, verify=True))
            line = "same" if torch.equal(found, whole[name]) else "another model was loaded"
        except spqlm.SpqError as error:
            line = "refused" if str(error) else "refused without a word"
        except Exception as error:
            line = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        print(line, flush=True)
