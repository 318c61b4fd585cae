"""Byte budgets on a real model; writes benchmarks/results/sizes.json.

    SPQ_DATA_DIR=... python benchmarks/sizes.py [--sizes 136 110 90 85 75 60]
        [--calibration NAME] [--recover] [--without [INGREDIENT ...]]
        [--recipe FILE.yaml --label NAME] [--keep DIR]

`--without` measures the recipe `default` with one ingredient off at a time; without a name, with
each of INGREDIENTS. `--keep` leaves the last checkpoint in DIR/out.

Perplexity over the first 20 windows of 1,024 tokens of WikiText-2 (raw, test) and of C4, model
reloaded in float32; Δ = ln(ppl / dense ppl). Gradients are collected once: the first size includes
that time, the others do not. Rows are added to those that are stored.
`make results` puts them into docs/results.md.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from itertools import product
from pathlib import Path

import torch
from compress import CONTEXT, WINDOWS, machine

import spqlm
from spqlm.data import encode, load_text
from spqlm.evaluation import perplexity
from spqlm.formats.low_rank import LowRank
from spqlm.recipe import Recipe, load_recipe
from spqlm.sources.load import load_model, load_tokenizer

RESULTS = Path(__file__).parent / "results" / "sizes.json"
SMALL_GROUPS = [{"int4": {"group_size": 64}}, "int8"]
# What the recipe's stage `budget`, or its calibration, is without each.
INGREDIENTS: dict[str, dict] = {
    "gradient weights in the fit": {"token_power": 0},
    "GPTQ": {"rounding": "nearest"},
    "ranks": {"ranks": []},
    "widths": {"widths": [], "key_value_groups": []},
    "groups of 128": {"formats": SMALL_GROUPS, "embedding_formats": SMALL_GROUPS},
    "a 4-bit embedding": {"embedding_formats": ["int8"]},
    "windows beyond 48": {"windows": 48},
}


def scores(directory: Path, tokens: dict[str, torch.Tensor]) -> dict[str, float]:
    model = load_model(directory, dtype=torch.float32).model
    return {
        task: perplexity(model, ids, CONTEXT, limit=WINDOWS).nll for task, ids in tokens.items()
    }


def without(ingredient: str) -> Recipe:
    """The recipe `default` with one ingredient off."""
    fields = load_recipe("default").to_dict()
    [budget] = [stage["budget"] for stage in fields["stages"] if "budget" in stage]
    for key, value in INGREDIENTS[ingredient].items():
        place = budget if key in budget else fields["calibration"]
        place[key] = value
    return Recipe.from_dict(fields)


def variants(arguments: argparse.Namespace) -> list[tuple[str, Recipe]]:
    """Labels and recipes to measure."""
    if arguments.without is None:
        return [(arguments.label, load_recipe(arguments.recipe))]
    names = arguments.without or INGREDIENTS
    return [(f"default without {name}", without(name)) for name in names]


def measure(
    folder: Path, size: float, label: str, recipe: Recipe, arguments: argparse.Namespace
) -> dict:
    started = time.perf_counter()
    manifest = spqlm.compress(
        folder / "dense",
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
        "int4": sum(form.code_bits == 4 for form in formats),
        "ranks": sum(isinstance(form, LowRank) for form in formats),
        "cuts": sum(change.cut is not None for change in changes),
        "weights": len(changes),
        "predicted": budget.plan.predicted_loss,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="*", type=float, default=[136, 110, 90, 85, 75, 60])
    parser.add_argument("--calibration", default="wikitext2_valid")
    parser.add_argument("--recover", action="store_true", help="also distil")
    parser.add_argument("--without", nargs="*", choices=INGREDIENTS, metavar="INGREDIENT")
    parser.add_argument("--recipe", default="default", help="another recipe than the default one")
    parser.add_argument("--label", default="default", help="what to call that recipe")
    parser.add_argument("--keep", type=Path, help="directory that checkpoints stay in")
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
        if "dense" not in stored:
            stored["dense"] = scores(folder / "dense", tokens)
        for size, (label, recipe) in product(arguments.sizes, variants(arguments)):
            row = measure(folder, size, label, recipe, arguments)
            nll = scores(folder / "out", tokens)
            row["delta"] = {task: nll[task] - stored["dense"][task] for task in nll}
            print(json.dumps(row), flush=True)
            keep(stored, row)
    finally:
        if arguments.keep is None:
            shutil.rmtree(folder)


def keep(stored: dict, row: dict) -> None:
    """Put a row in the place of an earlier one of its kind, and store all of them."""
    kind = ("label", "target", "calibration", "recovered")
    others = [r for r in stored["rows"] if any(r[key] != row[key] for key in kind)]
    order = lambda r: (r["label"], r["calibration"], -r["target"], r["recovered"])  # noqa: E731
    stored["rows"] = sorted([*others, row], key=order)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main()
