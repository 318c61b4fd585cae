"""One process against two that torchrun starts, on one machine: time, bytes and predictions.

    python benchmarks/processes.py [--model demo] [--recipe default] [--windows 16]
        [--target-ratio 0.33]

Each is `spq compress --no-recover` on that many windows of the built-in text, one thread a process,
each with an empty cache. All are to give the same bytes. Where they do not, it counts how far
predictions on the first window of the text are apart (KL divergence).
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import yaml

import spqlm
from spqlm.data import encode, load_text
from spqlm.evaluation.machine import machine
from spqlm.numerics.objectives import divergence
from spqlm.recipe import load_recipe
from spqlm.sources.load import load_tokenizer

ONE = [sys.executable, "-m", "spqlm"]
TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "spqlm"]
RUNS = {"one": ONE, "two": [sys.executable, *TWO], "two again": [sys.executable, *TWO]}
CONTEXT = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--target-ratio", default="0.33")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = folder / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(_recipe(arguments.recipe, arguments.windows)))
        words = ["compress", arguments.model, "--recipe", str(recipe), "--no-recover"]
        words += ["--target-ratio", arguments.target_ratio]
        seconds = {run: _run(start, words, folder / run) for run, start in RUNS.items()}
        digests = {run: _digest(folder / run) for run in RUNS}
        apart = _divergence(folder / "one", folder / "two")
    for run, taken in seconds.items():
        share = "" if run == "one" else f", {taken / seconds['one']:.2f} of one process"
        print(f"{run:10} {taken:7.1f} s{share}, weights {digests[run][:16]}")
    print(f"the same bytes from two processes twice: {digests['two'] == digests['two again']}")
    print(f"the same bytes from one: {digests['two'] == digests['one']}")
    print(f"KL divergence between one and two: {apart:.2e} nats")
    print(json.dumps(machine()), f"load {os.getloadavg()[1]:.1f}")


def _recipe(name: str, windows: int) -> dict:
    fields = load_recipe(name).to_dict()
    fields["calibration"] = {"source": "builtin", "windows": windows, "context": CONTEXT}
    return fields


def _run(start: list[str], words: list[str], out: Path) -> float:
    own = {"OMP_NUM_THREADS": "1", "SPQ_CACHE_DIR": f"{out}.cache"}
    started = time.perf_counter()
    done = subprocess.run(
        [*start, *words[:2], str(out), *words[2:]],
        env=os.environ | own,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(done.stderr.strip())
    return time.perf_counter() - started


def _digest(out: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(out.glob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


@torch.inference_mode()
def _divergence(one: Path, two: Path) -> float:
    ids = encode(load_tokenizer(str(one)), load_text("builtin", "calibration").text, CONTEXT).ids
    window = ids[None, :CONTEXT]
    first, second = (
        spqlm.load(path, dtype=torch.float32)(input_ids=window).logits[0] for path in (one, two)
    )
    return float(divergence(second, first)[0]) / CONTEXT


if __name__ == "__main__":
    main()
