"""Time and memory of a byte budget by depth and width; writes benchmarks/results/scaling.json.

    python benchmarks/scaling.py [--only NAME ...]

Random weights in the shape of SmolLM2-135M with fewer layers, with twice as many of those, and with
layers twice as wide, compressed by the recipe `default` without distillation to a third of their
size. Calibration on the built-in text, nothing cached: gradients and prices are part of the time.
Rows are added to those that are stored. `make results` puts them into docs/results.md.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import torch
from compress import machine
from transformers import AutoModelForCausalLM, LlamaConfig

import spqlm
from spqlm.cache import DIRECTORY_VARIABLE
from spqlm.sources.load import load_model

RESULTS = Path(__file__).parent / "results" / "scaling.json"
WIDTH, NEURONS, LAYERS, HEADS, GROUPS = 576, 1536, 8, 9, 3
RATIO = 0.34
# Layers and widths as multiples of these.
SHAPES = {
    "8 layers of 576": (1, 1),
    "16 layers of 576": (2, 1),
    "8 layers of 1152": (1, 2),
}


def make(directory: Path, layers: int, width: int) -> None:
    tokenizer = load_model("demo").tokenizer
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width * WIDTH,
        intermediate_size=width * NEURONS,
        num_hidden_layers=layers * LAYERS,
        num_attention_heads=width * HEADS,
        num_key_value_heads=width * GROUPS,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def measure(name: str, folder: Path) -> dict:
    make(folder / "dense", *SHAPES[name])
    os.environ[DIRECTORY_VARIABLE] = str(folder / "cache")
    started = time.perf_counter()
    manifest = spqlm.compress(
        folder / "dense", folder / "out", recipe="default", target_ratio=RATIO, recover=False
    ).manifest
    return {
        "name": name,
        "seconds": time.perf_counter() - started,
        "peak_bytes": max(record.peak_bytes for record in manifest.stages),
        "dense_bytes": sum(
            file.stat().st_size for file in (folder / "dense").glob("*.safetensors")
        ),
        "disk": manifest.sizes.disk,
        "load": os.getloadavg()[1],
        "machine": machine(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=list(SHAPES), choices=SHAPES, metavar="NAME")
    arguments = parser.parse_args()
    stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": []}
    for name in arguments.only:
        with tempfile.TemporaryDirectory(prefix="spq-bench-") as folder:
            row = measure(name, Path(folder))
        print(json.dumps(row), flush=True)
        found = {r["name"]: r for r in stored["rows"]} | {name: row}
        stored["rows"] = [found[shape] for shape in SHAPES if shape in found]
        RESULTS.write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main()
