"""Damaged results: each is refused in a sentence, or a page is drawn from it."""

import shutil
from pathlib import Path
from random import Random

from tests.cli.test_bench import FOUND
from tests.fuzz.mutate import damage
from tests.fuzz.outcome import in_child
from tests.fuzz.report import Report, until
from tests.helpers import TEXT, tiny_model, tiny_tokenizer

import spqlm
from spqlm.cli.output import as_json
from spqlm.comparison import Cell, Comparison
from spqlm.report.document import document
from spqlm.report.evidence import read_evidence
from spqlm.report.layers import layers
from spqlm.report.page import html, markdown

RESULTS = ("dense.json", "int8.json")
SECONDS = 30.0


def run(folder: Path, seed: int, seconds: float, most: int = 100_000) -> Report:
    """Damage one of the files that `spq report` draws from, and write the page in memory."""
    report, random, going_on = Report("damaged results"), Random(seed), until(seconds, most)
    whole, damaged = folder / "whole", folder / "damaged"
    _measure(folder, whole)
    while going_on(report.tried):
        shutil.rmtree(damaged, ignore_errors=True)
        shutil.copytree(whole, damaged)
        how = damage(random.choice(sorted(damaged.iterdir())), random)
        outcome = in_child(lambda: _draw(folder / "int8", damaged), SECONDS)
        report.add(how, outcome.fault)
    return report


def _measure(folder: Path, whole: Path) -> None:
    whole.mkdir()
    text = folder / "text.txt"
    text.write_text(TEXT)
    model, tokenizer = tiny_model(), tiny_tokenizer()
    model.save_pretrained(folder / "dense")
    tokenizer.save_pretrained(folder / "dense")
    spqlm.compress(folder / "dense", folder / "int8", recipe="int8")
    cells = []
    for name in ("dense", "int8"):
        found = spqlm.evaluate(
            folder / name, str(text), against=folder / "dense", context=32, limit=4
        )
        (whole / f"{name}.json").write_text(as_json(found))
        cells.append(
            Cell(
                method=name,
                target=None,
                status="done",
                bytes=100_000,
                recipe={},
                seed=0,
                tasks={task.task: task for task in found.tasks},
                key="",
            )
        )
    (whole / "comparison.json").write_text(as_json(Comparison(model="dense", cells=cells)))
    (whole / "bench.json").write_text(as_json(FOUND))
    measured = [row.model_copy(update={"measured_loss": 0.01}) for row in layers(folder / "int8")]
    (whole / "modules.json").write_text(as_json(measured))


def _draw(checkpoint: Path, files: Path) -> None:
    evidence = read_evidence(
        checkpoint,
        [files / name for name in RESULTS],
        files,
        files / "bench.json",
        files / "modules.json",
    )
    made = document(evidence, None)
    html(made)
    markdown(made)
