"""Mixed int8 and int4 at byte budgets on a real model; writes benchmarks/results/sizes.json.

    SPQ_DATA_DIR=... python benchmarks/sizes.py [--sizes 136 110 90 85 75] [--calibration NAME]

No recovery. Perplexity over the first 20 windows of 1,024 tokens of WikiText-2 (raw, test) and of
C4, model reloaded in float32; Δ = ln(ppl / dense ppl). Sensitivities are collected once: the first
size's time includes that, the others' do not.
"""

import argparse
import json
import math
import shutil
import tempfile
import time
from pathlib import Path

import torch
from compress import CONTEXT, WINDOWS, machine

import spq
from spq.data import encode, load_text
from spq.evaluation import perplexity
from spq.integrations.source import load_model, load_tokenizer

RESULTS = Path(__file__).parent / "results" / "sizes.json"


def scores(directory: Path, tokens: dict[str, torch.Tensor]) -> dict[str, float]:
    model = load_model(directory, dtype=torch.float32).model
    return {
        task: perplexity(model, ids, CONTEXT, limit=WINDOWS).nll for task, ids in tokens.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="*", type=float, default=[136, 110, 90, 85, 75])
    parser.add_argument("--calibration", default="wikitext2_valid")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="spq-bench-"))
    try:
        spq.compress("demo", folder / "dense", recipe="dense")
        tokenizer = load_tokenizer(str(folder / "dense"))
        tokens = {
            task: encode(tokenizer, load_text(task, "evaluation").text, CONTEXT)
            for task in ("wikitext2", "c4")
        }
        dense = scores(folder / "dense", tokens)
        rows = []
        for size in arguments.sizes:
            started = time.perf_counter()
            manifest = spq.compress(
                folder / "dense",
                folder / "out",
                target_size=f"{size}MB",
                calibration=arguments.calibration,
                overwrite=True,
            ).manifest
            seconds = time.perf_counter() - started
            changes = manifest.stages[0].plan.changes
            nll = scores(folder / "out", tokens)
            row = {
                "target": size,
                "disk": manifest.sizes.disk,
                "seconds": seconds,
                "peak_bytes": manifest.stages[0].peak_bytes,
                "int4": sum(change.details["bits"] == 4 for change in changes),
                "weights": len(changes),
                "predicted": sum(change.details["predicted_loss"] for change in changes),
                "delta": {task: nll[task] - dense[task] for task in nll},
            }
            rows.append(row)
            print(json.dumps(row), flush=True)
    finally:
        shutil.rmtree(folder)
    stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"calibrations": {}}
    stored["machine"] = machine()
    stored["dense"] = {task: math.exp(value) for task, value in dense.items()}
    measured = {row["target"]: row for row in stored["calibrations"].get(arguments.calibration, [])}
    measured |= {row["target"]: row for row in rows}
    ordered = sorted(measured.values(), key=lambda row: -row["target"])
    stored["calibrations"][arguments.calibration] = ordered
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main()
