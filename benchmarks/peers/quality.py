"""What other methods make of the same model, and ours; writes results/peers_quality.json.

    SPQ_DATA_DIR=... python benchmarks/peers/quality.py [--only NAME ...] [--folder DIR]

Every method gets the same 48 windows of 512 tokens, drawn as `spq compress` draws them, and
changes the decoder's linear layers alone (quality_methods.py). A peer runs in the environment that
setup.py made for it, on the model in its own dtype, and leaves its weights, dequantised, as a plain
checkpoint; SPQ's own rows are `spqlm.compress` with a recipe of one stage, in this process. All are
scored as in benchmarks/sizes.py: perplexity over the first 20 windows of 1,024 tokens of WikiText-2
(raw, test) and of C4, model in float32; Δ = ln(ppl / dense ppl), with the standard error of the
difference over windows. Seconds are those of a peer's method alone, without loading and saving, and
of all of `spqlm.compress`. Results are stored one by one, so that one can be measured again, with
the tables as peers_quality.md beside them.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1]))
from compress import CONTEXT, WINDOWS, machine
from environments import default_folder, outcome, python_of
from quality_methods import (
    CALIBRATION,
    CALIBRATION_CONTEXT,
    CALIBRATION_WINDOWS,
    GROUP,
    LEVELS,
    METHODS,
    Ours,
    Peer,
    peer_scales,
)
from quality_tables import tables
from results import write_results

import spqlm
from spqlm.calibration.statistics import draw_windows
from spqlm.data import consecutive, encode, load_text
from spqlm.evaluation import perplexity
from spqlm.recipe import Recipe
from spqlm.sources.load import load_model

RESULTS = Path(__file__).parents[1] / "results" / "peers_quality.json"
WORKERS = Path(__file__).parent / "workers"
TASKS = ("wikitext2", "c4")


def prepare(scratch: Path) -> tuple[Path, Path, dict[str, torch.Tensor]]:
    """The dense checkpoint, the calibration windows as a file, and the tokens to score."""
    dense, windows = scratch / "dense", scratch / "windows.safetensors"
    spqlm.compress("demo", dense, recipe="dense")
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


def scores(model: torch.nn.Module, tokens: dict[str, torch.Tensor]) -> dict[str, list[float]]:
    """Mean nll per token of each window, of each text."""
    return {
        task: [
            perplexity(model, window, CONTEXT).nll for window in consecutive(ids, CONTEXT, WINDOWS)
        ]
        for task, ids in tokens.items()
    }


def check(model: torch.nn.Module, dense: torch.nn.Module) -> None:
    """Exit unless linears are 4-bit in groups of 64, or half zeros, and the rest is as it was."""
    before = dict(dense.named_parameters())
    for name, weight in model.named_parameters():
        if "_proj." not in name:
            if not torch.equal(weight, before[name]):
                sys.exit(f"{name} was changed, which this comparison leaves alone")
            continue
        groups = weight.detach().unflatten(-1, (-1, GROUP)).sort(-1).values
        levels = 1 + int((groups.diff(dim=-1) != 0).sum(-1).max())
        zeros = float((weight == 0).float().mean())
        if levels > LEVELS and abs(zeros - 0.5) > 0.01:
            sys.exit(f"{name} has {levels} values in a group of {GROUP}, and {zeros:.0%} zeros")


def measure(peer: Peer, folder: Path, scratch: Path, windows: Path) -> dict:
    """Run a method in its environment, without the interpreter settings of ours."""
    out, record = scratch / "out", scratch / "record.json"
    python, worker = python_of(folder, peer.environment), WORKERS / peer.worker
    command = [python, worker, scratch / "dense", windows]
    settings = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run(
        [*map(str, command), str(out), str(record), peer.argument],
        env={**settings, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
        check=True,
        cwd=scratch,
    )
    return json.loads(record.read_text()) | conditions()


def measure_ours(ours: Ours, scratch: Path) -> dict:
    """Compress with a recipe of one stage."""
    windows = {"windows": CALIBRATION_WINDOWS, "context": CALIBRATION_CONTEXT}
    recipe = Recipe.from_dict({"calibration": windows, "stages": [ours.stage]})
    dense, out = scratch / "dense", scratch / "out"
    started = time.perf_counter()
    with peer_scales() if ours.peer_scales else nullcontext():
        spqlm.compress(dense, out, recipe=recipe, calibration=CALIBRATION, seed=0)
    return {
        "seconds": time.perf_counter() - started,
        "versions": {"spq": spqlm.__version__},
    } | conditions()


def conditions() -> dict:
    return {
        "machine": machine(),
        "load_average": os.getloadavg()[0],
        "measured": time.strftime("%Y-%m-%d"),
    }


def store(fields: dict, method: str, row: dict) -> dict:
    """Merge into what is stored by now, so that two runs of different methods add up."""
    stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"methods": {}}
    stored |= fields
    stored["methods"][method] = row
    write_results(RESULTS, stored, tables(stored))
    return stored


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--folder", type=Path, default=default_folder())
    arguments = parser.parse_args()
    folder = arguments.folder.absolute()
    scratch = Path(tempfile.mkdtemp(prefix="spq-peers-"))
    try:
        dense, windows, tokens = prepare(scratch)
        reference = load_model(dense, dtype=torch.float32).model
        base = scores(reference, tokens)
        fields = {"command": "python benchmarks/peers/quality.py", "dense": base}
        for name in arguments.only:
            method = METHODS[name]
            reason = outcome(folder, method.environment) if isinstance(method, Peer) else None
            if reason is not None:
                row = {"reason": reason}
            else:
                if isinstance(method, Peer):
                    row = measure(method, folder, scratch, windows)
                else:
                    row = measure_ours(method, scratch)
                made = load_model(scratch / "out", dtype=torch.float32).model
                if isinstance(method, Peer):
                    check(made, reference)
                row["nll"] = scores(made, tokens)
                shutil.rmtree(scratch / "out")
            print(name, json.dumps(row), flush=True)
            stored = store(fields, name, row)
    finally:
        shutil.rmtree(scratch)
    print(tables(stored))


if __name__ == "__main__":
    main()
