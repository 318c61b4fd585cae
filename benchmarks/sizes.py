"""Byte budgets on a real model; writes benchmarks/results/sizes.json.

    SPQ_DATA_DIR=... python benchmarks/sizes.py [--sizes 110 90 75 60 52 45 40]
        [--calibration NAME] [--recover] [--variants [NAME ...]]
        [--recipe FILE.yaml --label NAME] [--keep DIR] [--again]

`--variants` measures the recipe `default` with some settings changed; without a name, each of
VARIANTS. `--keep` leaves the last checkpoint in DIR/out.

Sizes that are stored for the same label, calibration and recovery are not measured again, unless
`--again` is given: a run that was stopped goes on.

Perplexity over the first 20 windows of 1,024 tokens of WikiText-2 (raw, test) and of C4, model
reloaded in float32; Δ = ln(ppl / dense ppl), and KL from the dense model's predictions. Gradients
are collected once: the first size includes that time, the others do not. Rows are added to those
that are stored. `make results` puts them into docs/results.md.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from collections import Counter
from itertools import product
from pathlib import Path

import torch
from compress import CONTEXT, WINDOWS, machine

import spqlm
from spqlm.data import encode, load_text
from spqlm.evaluation import Perplexity, perplexity
from spqlm.evaluation.agreement import Reference
from spqlm.formats import dump
from spqlm.formats.low_rank import LowRank
from spqlm.recipe import Recipe, load_recipe
from spqlm.sources.load import load_model, load_tokenizer
from spqlm.targets.mlx import MlxTarget

RESULTS = Path(__file__).parent / "results" / "sizes.json"
# What a row is known by.
KIND = ("label", "target", "calibration", "recovered")
GROUP_SIZE = 64


def even(*bits: int) -> dict[str, list]:
    """A menu of int8 and of evenly spaced codes of these widths."""
    return menu([{f"int{count}": {"group_size": GROUP_SIZE}} for count in bits])


def menu(narrow: list) -> dict[str, list]:
    """int8, and these formats."""
    return {"formats": [*narrow, "int8"], "embedding_formats": [*narrow, "int8"]}


SHAPES = {
    "widths": [0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5],
    "key_value_groups": [0.75, 0.5],
    "ranks": [0.9, 0.7, 0.5],
}
# What `default` had before scales of few-bit weights took eight bits.
FLOAT_SCALES = [
    *({"nl2": {"group_size": size}} for size in (32, 64)),
    *({"nl3": {"group_size": size}} for size in (32, 64, 128)),
    *({"nl4": {"group_size": size}} for size in (64, 128)),
    {"nl5": {"group_size": 64}},
    {"int6": {"group_size": 64}},
]
# What is other than in the recipe, of its stage `budget` or its calibration, by what it is called.
VARIANTS: dict[str, dict] = {
    "only int4 and int8": even(4),
    "only int4, int5, int6 and int8": even(4, 5, 6),
    "a float for each group": menu(FLOAT_SCALES),
    "evenly spaced levels only": menu([dump(form) for form in MlxTarget.offered]),
    "ranks and widths, too": SHAPES,
    "gradients not weighed in the fit": {"token_power": 0},
    "rounding to nearest": {"rounding": "nearest"},
    "GPTQ without descent": {"rounding": "gptq"},
    "asymmetric calibration": {"asymmetric": 0.5},
    "an embedding in 8 bits": {"embedding_formats": ["int8"]},
    "64 windows": {"windows": 64},
    "48 windows": {"windows": 48},
    "q, k and v alike, gate and up alike": {"alike": "fused"},
    "one format for all layers": {"alike": "uniform"},
}


def scores(
    directory: Path, tokens: dict[str, torch.Tensor], reference: Reference
) -> dict[str, Perplexity]:
    """By text."""
    model = load_model(directory, dtype=torch.float32).model
    return {
        task: perplexity(model, ids, CONTEXT, limit=WINDOWS, reference=reference)
        for task, ids in tokens.items()
    }


def varied(name: str) -> Recipe:
    """The recipe `default` with some settings changed."""
    fields = load_recipe("default").to_dict()
    [budget] = [stage["budget"] for stage in fields["stages"] if "budget" in stage]
    for key, value in VARIANTS[name].items():
        place = budget if key in budget else fields["calibration"]
        place[key] = value
    return Recipe.from_dict(fields)


def variants(arguments: argparse.Namespace) -> list[tuple[str, Recipe]]:
    """Labels and recipes to measure."""
    if arguments.variants is None:
        return [(arguments.label, load_recipe(arguments.recipe))]
    return [(f"default, {name}", varied(name)) for name in arguments.variants or VARIANTS]


def measure(
    folder: Path, size: float, label: str, recipe: Recipe, arguments: argparse.Namespace
) -> dict:
    started = time.perf_counter()
    manifest = spqlm.compress(
        "demo",
        folder / "out",
        recipe=recipe,
        target_size=f"{size}MB",
        calibration=arguments.calibration,
        recover=arguments.recover,
        overwrite=True,
    ).manifest
    [budget, *_] = manifest.stages
    changes = budget.plan.changes
    formats = [change.stored_as for change in changes]
    return {
        "label": label,
        "target": size,
        "calibration": arguments.calibration,
        "recovered": arguments.recover,
        "disk": manifest.sizes.disk,
        "seconds": time.perf_counter() - started,
        "load": os.getloadavg()[1],
        "machine": machine(),
        "stage_seconds": {record.plan.stage: record.seconds for record in manifest.stages},
        "peak_bytes": max(record.peak_bytes for record in manifest.stages),
        "codes": dict(Counter(form.codes for form in formats)),
        "ranks": sum(isinstance(form, LowRank) for form in formats),
        "cuts": sum(change.cut is not None for change in changes),
        "weights": len(changes),
        "predicted": budget.plan.predicted_loss,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="*", type=float, default=[110, 90, 75, 60, 52, 45, 40])
    parser.add_argument("--calibration", default="wikitext2_valid")
    parser.add_argument("--recover", action="store_true", help="also distil")
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, metavar="NAME")
    parser.add_argument("--recipe", default="default", help="another recipe than the default one")
    parser.add_argument("--label", default="default", help="what to call that recipe")
    parser.add_argument("--keep", type=Path, help="directory that checkpoints stay in")
    parser.add_argument("--again", action="store_true", help="measure what is stored, too")
    arguments = parser.parse_args()
    stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": []}
    folder = arguments.keep or Path(tempfile.mkdtemp(prefix="spq-bench-"))
    try:
        spqlm.compress("demo", folder / "dense", recipe="dense", overwrite=True)
        tokenizer = load_tokenizer(str(folder / "dense"))
        tokens = {
            task: encode(tokenizer, load_text(task, "evaluation").text, CONTEXT)
            for task in ("wikitext2", "c4")
        }
        dense = Reference("dense", load_model(folder / "dense", dtype=torch.float32).model)
        if "dense" not in stored:
            own = scores(folder / "dense", tokens, dense)
            stored["dense"] = {task: score.nll for task, score in own.items()}
        for size, (label, recipe) in product(arguments.sizes, variants(arguments)):
            if not arguments.again and held(stored, size, label, arguments):
                continue
            row = measure(folder, size, label, recipe, arguments)
            found = scores(folder / "out", tokens, dense)
            row["delta"] = {task: found[task].nll - stored["dense"][task] for task in found}
            row["divergence"] = {task: _divergence(score) for task, score in found.items()}
            print(json.dumps(row), flush=True)
            keep(stored, row)
    finally:
        if arguments.keep is None:
            shutil.rmtree(folder)


def _divergence(score: Perplexity) -> float:
    assert score.agreement is not None
    return score.agreement.divergence


def held(stored: dict, size: float, label: str, arguments: argparse.Namespace) -> bool:
    """Whether the row is stored."""
    wanted = (label, size, arguments.calibration, arguments.recover)
    return any(tuple(row[key] for key in KIND) == wanted for row in stored["rows"])


def keep(stored: dict, row: dict) -> None:
    """Put a row in the place of an earlier one of its kind, and store all of them."""
    others = [r for r in stored["rows"] if any(r[key] != row[key] for key in KIND)]
    order = lambda r: (r["label"], r["calibration"], -r["target"], r["recovered"])  # noqa: E731
    stored["rows"] = sorted([*others, row], key=order)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main()
