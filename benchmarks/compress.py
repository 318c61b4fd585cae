"""What each recipe costs and saves on a real model; writes benchmarks/results/compress.json.

    SPQ_DATA_DIR=... python benchmarks/compress.py [--only quality|stages|block] [--model demo]

Quality: perplexity over the first 20 windows of 1,024 tokens of WikiText-2 (raw, test) and of C4,
model in float32; calibration and recovery on `wikitext2_valid`. Sizes are bytes on disk of all
weights, against the source's own dtype. Stages: wall time and peak memory of each stage. Block:
SVD and quantisation of one decoder block of LLaMA-2-7B's shape, random weights.

Results are stored per section, so one section can be measured again. `make results` turns them into
docs/results.md.
"""

import argparse
import json
import platform
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

import spqlm
from spqlm.data import encode, load_text
from spqlm.evaluation import perplexity
from spqlm.evaluation.machine import processor
from spqlm.formats.int8 import Int8
from spqlm.formats.low_rank import of_factors
from spqlm.model.memory import PeakMemory
from spqlm.modules.ops import linear_of
from spqlm.numerics import low_rank
from spqlm.recipe import Recipe, load_recipe
from spqlm.sources.load import load_model, load_tokenizer

RESULTS = Path(__file__).parent / "results" / "compress.json"
CALIBRATION = "wikitext2_valid"
CONTEXT, WINDOWS = 1024, 20

PAPER = load_recipe("paper").to_dict()
SVD, PRUNE, QUANTIZE, RECOVER = PAPER["stages"]


def with_mode(mode: str) -> dict:
    return {"quantize": {**QUANTIZE["quantize"], "mode": mode}}


def pruned(maximum: float) -> dict:
    return {"prune": {**PRUNE["prune"], "maximum": maximum, "multiple_of": 1}}


INT8 = load_recipe("int8").to_dict()["stages"]
# At the authors' settings nothing is snapped: their script prunes and truncates to the exact count.
AS_AUTHORS = [
    {"svd": {**SVD["svd"], "multiple_of": 1}},
    pruned(0.05),
    QUANTIZE,
]
CELLS = {
    "dense": [],
    "int8": INT8,
    "paper, no recovery": [SVD, PRUNE, QUANTIZE],
    "paper": PAPER["stages"],
    "int8 + the same recovery": [*INT8, RECOVER],
    "dense + the same recovery": [RECOVER],
    "authors' settings, no recovery": AS_AUTHORS,
    "authors' settings": [*AS_AUTHORS, RECOVER],
    "SVD 0.96": [{"svd": {**SVD["svd"], "multiple_of": 1}}],
    "pruning 0.05": [pruned(0.05)],
    "pruning 0.10": [pruned(0.10)],
    "pruning 0.20": [pruned(0.20)],
    "int8 per tensor": [with_mode("per_tensor")],
    "int8 by name": [with_mode("by_name")],
    "int8 by percentile": [with_mode("by_percentile")],
    "int8 by size": [with_mode("by_size")],
    "int8 per channel": [with_mode("per_channel")],
}
ON_C4 = {"dense", "int8", "paper, no recovery", "paper", "int8 + the same recovery"}


def machine() -> dict:
    return {
        "cpu": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def measure(model: str, name: str, stages: list, tokens: dict[str, torch.Tensor]) -> dict:
    calibration = {"source": CALIBRATION, "windows": 32, "context": 512}
    recipe = Recipe.from_dict({"calibration": calibration, "stages": stages})
    folder = Path(tempfile.mkdtemp(prefix="spq-bench-"))
    try:
        started = time.perf_counter()
        manifest = spqlm.compress(model, folder / "out", recipe=recipe).manifest
        seconds = time.perf_counter() - started
        reloaded = load_model(folder / "out", dtype=torch.float32).model
        scores = {
            task: perplexity(reloaded, ids, CONTEXT, limit=WINDOWS).model_dump()
            for task, ids in tokens.items()
            if task == "wikitext2" or name in ON_C4
        }
    finally:
        shutil.rmtree(folder)
    return {
        "disk": manifest.sizes.disk,
        "source": manifest.sizes.source,
        "fp32": manifest.sizes.fp32,
        "seconds": seconds,
        "threads": torch.get_num_threads(),
        "scores": scores,
        "stages": [
            {
                "stage": record.plan.stage,
                "summary": record.plan.summary,
                "seconds": record.seconds,
                "peak_bytes": record.peak_bytes,
            }
            for record in manifest.stages
        ],
    }


def quality(model: str, cells: list[str]) -> dict:
    plain = Path(tempfile.mkdtemp(prefix="spq-bench-source-"))
    spqlm.compress(model, plain / "dense", recipe="dense")  # unpack GGUF once, not once a cell
    source = str(plain / "dense")
    tokenizer = load_tokenizer(source)
    tokens = {
        task: encode(tokenizer, load_text(task, "evaluation").text, CONTEXT)
        for task in ("wikitext2", "c4")
    }
    results = {}
    for name in cells:
        results[name] = measure(source, name, CELLS[name], tokens)
        score = results[name]["scores"]["wikitext2"]["perplexity"]
        print(f"{name}: {results[name]['disk'] / 1e6:.1f} MB, wikitext2 {score:.3f}", flush=True)
    shutil.rmtree(plain)
    return results


def block() -> dict:
    """One decoder block of LLaMA-2-7B: 4 of 4096 × 4096, 3 of 11008 × 4096, bfloat16."""
    torch.manual_seed(0)
    hidden, width = 4096, 11008
    shapes = [(hidden, hidden)] * 4 + [(width, hidden)] * 2 + [(hidden, width)]
    weights = [(torch.randn(shape) / shape[1] ** 0.5).bfloat16() for shape in shapes]
    timings: dict[str, list[float]] = {"spectrum": [], "factors": [], "int8": []}
    with PeakMemory() as memory:
        for weight in weights:
            started = time.perf_counter()
            linear_of(Int8().nearest(weight), None)
            timings["int8"].append(time.perf_counter() - started)
            if weight.shape == (hidden, hidden):
                started = time.perf_counter()
                low_rank.variances(weight)
                timings["spectrum"].append(time.perf_counter() - started)
                started = time.perf_counter()
                factors = of_factors(*low_rank.truncate(weight, 1024))
                right = Int8().nearest(factors.right.restore())
                linear_of(replace(factors, right=right), None)
                timings["factors"].append(time.perf_counter() - started)
    started = time.perf_counter()
    torch.linalg.svd(weights[0].float(), full_matrices=False)
    full = time.perf_counter() - started
    print({name: [round(s, 2) for s in seconds] for name, seconds in timings.items()})
    return {
        "seconds": {name: sum(seconds) for name, seconds in timings.items()},
        "layers": {name: len(seconds) for name, seconds in timings.items()},
        "full_svd_of_one": full,
        "start_bytes": memory.start_bytes,
        "peak_bytes": memory.peak_bytes,
    }


def stages(model: str) -> dict:
    """Stage by stage on an otherwise idle machine."""
    plain = Path(tempfile.mkdtemp(prefix="spq-bench-source-"))
    spqlm.compress(model, plain / "dense", recipe="dense")
    recipe = load_recipe("paper").calibrated_on(CALIBRATION)
    started = time.perf_counter()
    manifest = spqlm.compress(plain / "dense", plain / "out", recipe=recipe).manifest
    seconds = time.perf_counter() - started
    shutil.rmtree(plain)
    rows = [
        {"stage": r.plan.stage, "seconds": r.seconds, "peak_bytes": r.peak_bytes}
        for r in manifest.stages
    ]
    return {"seconds": seconds, "stages": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--only", choices=["quality", "stages", "block"])
    parser.add_argument("--cells", nargs="*", default=list(CELLS), choices=list(CELLS))
    arguments = parser.parse_args()
    whole = arguments.only is None and set(arguments.cells) == set(CELLS)
    stored = json.loads(RESULTS.read_text()) if RESULTS.exists() and not whole else {}
    stored["machine"] = machine()
    if arguments.only in (None, "block"):
        stored["block"] = block()
    if arguments.only in (None, "stages"):
        stored["stages"] = stages(arguments.model)
    if arguments.only in (None, "quality"):
        measured = quality(arguments.model, arguments.cells)
        stored["quality"] = {**stored.get("quality", {}), **measured}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main()
