"""What `spq plan` told of a run, beside what the run took: time, memory and bytes on disk.

    python benchmarks/forecasts.py [--model demo] [--cases budget sparsify ...] [--output FILE]

Each case is `spq compress` in a process of its own with an empty cache, on little text, and the
figures are those that its manifest keeps: seconds of all stages, the most memory that any of them
held, bytes of the weight files. The model is written out once, so that one case can read it a layer
at a time. A time means something on a machine that does nothing else; asked is 25 % at most.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from spqlm.checkpoint.manifest import FILE, Manifest
from spqlm.evaluation.machine import machine

ALLOWED = 0.25
WINDOWS = {"source": "builtin", "windows": 8, "context": 256}
FORMATS = {"formats": [{"int4": {"group_size": 64}}, "int8"], "embedding_formats": ["int8"]}
PRUNED: list[dict[str, Any]] = [
    {"svd": {"variance": 0.9}},
    {"prune": {"maximum": 0.1}},
    {"quantize": {"mode": "per_channel"}},
]
GROUPS = {"sparsity": 0.5, "rounds": 1, "reconstruction": {"steps": 4, "check_every": 4}}

# By name: stages, and further words of the command.
CASES: dict[str, tuple[list[dict[str, Any]], list[str]]] = {
    "int8": ([{"quantize": {"mode": "per_channel"}}], []),
    "svd, prune, int8": (PRUNED, []),
    "lora": ([*PRUNED[2:], {"recover": {"steps": 30, "batch_size": 1, "context": 128}}], []),
    "budget": ([{"budget": FORMATS}], ["--target-ratio", "0.4"]),
    "budget by layers": ([{"budget": FORMATS}], ["--target-ratio", "0.4", "--memory", "LEAST"]),
    "descent": ([{"budget": FORMATS | {"rounding": "descent"}}], ["--target-ratio", "0.4"]),
    "distill": ([*PRUNED[2:], {"distill": {"steps": 10, "batch_size": 1, "context": 256}}], []),
    "sparsify": ([{"sparsify": GROUPS}], []),
}


def spq(*words: str, cache: Path) -> None:
    """Run a command, and end with its message where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "spqlm", *words],
        env=os.environ | {"SPQ_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"spq {' '.join(words)}: {done.stderr.strip()}")


def least_memory(model: Path, recipe: Path, words: list[str], cache: Path) -> str:
    """A limit that only a walk layer by layer keeps: what is asked for where 1 MB is given."""
    asked = [sys.executable, "-m", "spqlm", "plan", str(model), "--recipe", str(recipe), *words]
    told = subprocess.run(
        [*asked, "--memory", "1MB"],
        env=os.environ | {"SPQ_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
    ).stderr
    gigabytes = float(told.partition("about ")[2].partition(" GB")[0])
    return f"{gigabytes + 0.1:.1f}GB"


def run(name: str, model: Path, folder: Path) -> Manifest:
    """One case; its manifest."""
    stages, words = CASES[name]
    recipe, out, cache = folder / "recipe.yaml", folder / "out", folder / "cache"
    recipe.write_text(yaml.safe_dump({"calibration": WINDOWS, "stages": stages}))
    if "LEAST" in words:
        least = least_memory(model, recipe, words[:-2], cache)
        words = [least if word == "LEAST" else word for word in words]
    spq("compress", str(model), str(out), "--recipe", str(recipe), *words, cache=cache)
    return Manifest.model_validate_json((out / FILE).read_text(encoding="utf-8"))


def compared(manifest: Manifest) -> dict[str, tuple[float | None, float]]:
    """What was told and what it came to, by what is counted."""
    told = manifest.forecast
    assert told is not None
    return {
        "seconds": (told.seconds, sum(stage.seconds for stage in manifest.stages)),
        "peak": (told.peak, max(stage.peak_bytes for stage in manifest.stages)),
        "disk": (told.disk, manifest.sizes.disk),
    }


def row(name: str, found: dict[str, tuple[float | None, float]]) -> str:
    """A line of the table: told, actual, and how far the first is off."""
    cells = [f"{name:18}"]
    for kind, (told, actual) in found.items():
        scale, digits = (1.0, 1) if kind == "seconds" else (1e6, 0)
        if told is None:
            cells.append(f"{'-':>9} {actual / scale:9.{digits}f} {'':8}")
            continue
        off = told / actual - 1
        mark = "" if abs(off) <= ALLOWED else "!"
        figures = f"{told / scale:9.{digits}f} {actual / scale:9.{digits}f}"
        cells.append(f"{figures} {off:+7.0%}{mark:1}")
    return " | ".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        spq("export", arguments.model, "dense", str(model), cache=Path(folder) / "cache")
        kinds = ("seconds", "peak, MB", "files, MB")
        print(f"{'told, actual, off':18} | " + " | ".join(f"{kind:28}" for kind in kinds))
        for name in arguments.cases:
            with tempfile.TemporaryDirectory() as own:
                found = compared(run(name, model, Path(own)))
            results[name] = found
            print(row(name, found), flush=True)
    off = [
        abs(told / actual - 1)
        for found in results.values()
        for told, actual in found.values()
        if told is not None
    ]
    within = sum(value <= ALLOWED for value in off)
    print(f"{within} of {len(off)} within {ALLOWED:.0%}; load {os.getloadavg()[1]:.1f}")
    if arguments.output is not None:
        facts = {"machine": machine(), "load": os.getloadavg(), "cases": results}
        arguments.output.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
