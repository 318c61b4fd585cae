"""What other 4-bit methods make of the same model, and ours; writes results/peers_quality.json.

    SPQ_DATA_DIR=... python benchmarks/peers/quality.py [--only NAME ...] [--folder DIR]

Every method gets the same 48 windows of 512 tokens, drawn as `spq compress` draws them, and rounds
the decoder's linear layers to symmetric int4 in groups of 64; embedding and norms are untouched.
A peer runs in the environment that setup.py made for it, on the model in its own dtype, and leaves
its weights, dequantised, as a plain checkpoint; SPQ's own rows are `spq.compress` with a recipe of
one stage, in this process. All are scored as in benchmarks/sizes.py: perplexity
over the first 20 windows of 1,024 tokens of WikiText-2 (raw, test) and of C4, model in float32;
Δ = ln(ppl / dense ppl). Seconds are those of a peer's method alone, without loading and saving, and
of all of `spq.compress`. Results are stored one by one, so that one can be measured again, with the
table as peers_quality.md beside them.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1]))
from compress import CONTEXT, WINDOWS, machine
from environments import default_folder, outcome, python_of
from results import write_results

import spq
from spq.calibration import draw_windows
from spq.data import encode, load_text
from spq.evaluation import perplexity
from spq.integrations.source import load_model
from spq.recipe import Recipe

RESULTS = Path(__file__).parents[1] / "results" / "peers_quality.json"
WORKERS = Path(__file__).parent / "workers"
CALIBRATION, CALIBRATION_WINDOWS, CALIBRATION_CONTEXT = "wikitext2_valid", 48, 512
GROUP, LEVELS = 64, 16
TASKS = ("wikitext2", "c4")
# Method -> environment, worker, its last argument.
METHODS = {
    "llm-compressor, to nearest": ("llm-compressor", "with_llm_compressor.py", "rtn"),
    "llm-compressor, GPTQ": ("llm-compressor", "with_llm_compressor.py", "gptq"),
    "AutoRound, 100 iterations": ("auto-round", "with_auto_round.py", "100"),
}
# Ours -> what the stage `budget` has beside 4-bit linears in groups of 64 and a dense embedding.
OURS: dict[str, dict] = {
    "SPQ, to nearest": {"rounding": "nearest", "token_power": 0},
    "SPQ, GPTQ as published": {"token_power": 0},
    "SPQ, weighted GPTQ": {},
    "SPQ, weighted GPTQ, learned rounding": {"reconstruction": {"steps": 100}},
}


def prepare(scratch: Path) -> tuple[Path, Path, dict[str, torch.Tensor]]:
    """The dense checkpoint, the calibration windows as a file, and the tokens to score."""
    dense, windows = scratch / "dense", scratch / "windows.safetensors"
    spq.compress("demo", dense, recipe="dense")
    loaded = load_model(dense)
    text = load_text(CALIBRATION, "calibration").text
    ids = encode(loaded.tokenizer, text, CALIBRATION_CONTEXT)
    drawn = draw_windows(loaded.model, ids, CALIBRATION_CONTEXT, CALIBRATION_WINDOWS, seed=0)
    save_file({"ids": drawn.contiguous()}, windows)
    tokens = {
        task: encode(loaded.tokenizer, load_text(task, "evaluation").text, CONTEXT)
        for task in TASKS
    }
    return dense, windows, tokens


def scores(model: torch.nn.Module, tokens: dict[str, torch.Tensor]) -> dict[str, float]:
    return {
        task: perplexity(model, ids, CONTEXT, limit=WINDOWS).nll for task, ids in tokens.items()
    }


def check_grid(model: torch.nn.Module, dense: torch.nn.Module) -> None:
    """Exit unless the linears are 4-bit in groups of 64 and all the rest is as it was."""
    before = dict(dense.named_parameters())
    for name, weight in model.named_parameters():
        if "_proj." not in name:
            if not torch.equal(weight, before[name]):
                sys.exit(f"{name} was changed, which this comparison leaves alone")
            continue
        groups = weight.detach().unflatten(-1, (-1, GROUP)).sort(-1).values
        levels = 1 + int((groups.diff(dim=-1) != 0).sum(-1).max())
        if levels > LEVELS:
            sys.exit(f"{name} has {levels} values in a group of {GROUP}, so it is not 4-bit")


def measure(method: str, folder: Path, scratch: Path, windows: Path) -> dict:
    """Run a method in its environment, without the interpreter settings of ours."""
    environment, worker, argument = METHODS[method]
    out, record = scratch / "out", scratch / "record.json"
    command = [python_of(folder, environment), WORKERS / worker, scratch / "dense", windows]
    settings = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run(
        [*map(str, command), str(out), str(record), argument],
        env={**settings, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
        check=True,
        cwd=scratch,
    )
    return json.loads(record.read_text()) | conditions()


def measure_ours(method: str, scratch: Path) -> dict:
    """Compress with the recipe of one of OURS."""
    stage = {"bits": [4], "embedding_bits": [16], "group_sizes": [GROUP], **OURS[method]}
    windows = {"windows": CALIBRATION_WINDOWS, "context": CALIBRATION_CONTEXT}
    recipe = Recipe.from_dict({"calibration": windows, "stages": [{"budget": stage}]})
    started = time.perf_counter()
    spq.compress(scratch / "dense", scratch / "out", recipe=recipe, calibration=CALIBRATION, seed=0)
    return {
        "seconds": time.perf_counter() - started,
        "versions": {"spq": spq.__version__},
    } | conditions()


def conditions() -> dict:
    return {
        "machine": machine(),
        "load_average": os.getloadavg()[0],
        "measured": time.strftime("%Y-%m-%d"),
    }


def table(stored: dict) -> str:
    rows = []
    for method, row in stored["methods"].items():
        if "reason" in row:
            rows.append(f"| {method} | not measured: {row['reason']} | | | | |")
            continue
        delta, (environment, *_) = row["delta"], METHODS.get(method, ("spq",))
        version = row["versions"][environment]
        rows.append(
            f"| {method} | {version} | {delta['wikitext2']:.4f} | {delta['c4']:.4f} "
            f"| {row['seconds']:.0f} s | {row['machine']['cpu']}, {row['machine']['threads']} |"
        )
    return (
        f"SmolLM2-135M-Instruct; calibrated on {CALIBRATION_WINDOWS} windows of "
        f"{CALIBRATION_CONTEXT} tokens of {CALIBRATION}; Δ as in [byte budgets](#byte-budgets). "
        f"Written by `{stored['command']}`.\n\n"
        "| method, symmetric int4 in groups of 64, embedding untouched | version "
        "| Δ WikiText-2 | Δ C4 | time | machine, threads |\n|---|---|---|---|---|---|\n"
        + "\n".join(rows)
        + "\n"
    )


def store(fields: dict, method: str, row: dict) -> dict:
    """Merge into what is stored by now, so that two runs of different methods add up."""
    stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"methods": {}}
    stored |= fields
    stored["methods"][method] = row
    write_results(RESULTS, stored, table(stored))
    return stored


def main() -> None:
    names = [*METHODS, *OURS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=names, choices=names)
    parser.add_argument("--folder", type=Path, default=default_folder())
    arguments = parser.parse_args()
    folder = arguments.folder.absolute()
    scratch = Path(tempfile.mkdtemp(prefix="spq-peers-"))
    try:
        dense, windows, tokens = prepare(scratch)
        reference = load_model(dense, dtype=torch.float32).model
        base = scores(reference, tokens)
        fields = {
            "command": "python benchmarks/peers/quality.py",
            "dense": {task: math.exp(nll) for task, nll in base.items()},
        }
        for method in arguments.only:
            reason = None if method in OURS else outcome(folder, METHODS[method][0])
            if reason is not None:
                row = {"reason": reason}
            else:
                if method in OURS:
                    row = measure_ours(method, scratch)
                else:
                    row = measure(method, folder, scratch, windows)
                rounded = load_model(scratch / "out", dtype=torch.float32).model
                if method in METHODS:
                    check_grid(rounded, reference)
                nll = scores(rounded, tokens)
                row |= {
                    "perplexity": {task: math.exp(value) for task, value in nll.items()},
                    "delta": {task: nll[task] - base[task] for task in nll},
                }
                shutil.rmtree(scratch / "out")
            print(method, json.dumps(row), flush=True)
            stored = store(fields, method, row)
    finally:
        shutil.rmtree(scratch)
    print(table(stored))


if __name__ == "__main__":
    main()
