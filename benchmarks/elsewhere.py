"""Checkpoints of ours in other programs: do they load, and is it the same model?

    python benchmarks/elsewhere.py [--keep DIR] [--model demo] [--only PROGRAM ...]
        [--vllm PYTHON] [--compressed-tensors PYTHON] [--llama PYTHON] [--mlx PYTHON]

Seven checkpoints, none of them trained, are exported for each program and read by it, in the
environment of the PYTHON that is given for it; programs without one are left out. On 48 tokens of
the built-in text: the KL divergence of the program's predictions from ours in float32, and how many
tokens of a greedy continuation agree. What a program cannot hold as it is stored is exported with
`as_floats`, and the reason is kept. Writes benchmarks/results/elsewhere.json.
"""

import argparse
import json
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from compress import machine
from peers.environments import default_folder, python_of
from vllm_serving import NEW, ours, prompt_of

import spqlm
from spqlm.errors import SpqError
from spqlm.recipe import Recipe, load_recipe

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "elsewhere.json"
PREDICT = HERE / "peers" / "workers" / "predict.py"
# Few windows: what is asked is whether it is the same model elsewhere, not how good it is.
CALIBRATION = {"source": "builtin", "windows": 8, "context": 128}
INTEGERS = [*({f"int{bits}": {"group_size": 64}} for bits in (2, 3, 4, 5, 6)), "int8"]
NONLINEAR = [*({f"nl{bits}": {"group_size": 64}} for bits in (2, 3, 4, 5)), "int8"]


def budget(formats: list, target: float, **fields: object) -> dict:
    """A stage that spends bytes on formats, rounded to nearest: what is asked is not quality."""
    given = {"formats": formats, "embedding_formats": formats, "rounding": "nearest"}
    return {"budget": {**given, "priced_windows": 4, "target_bytes": int(target * 1e6), **fields}}


SPARSIFY = {"sparsity": 0.5, "group_size": 32, "reconstruction": {"steps": 0}}
STAGES = {
    "int8": load_recipe("int8").to_dict()["stages"],
    "w8a8": [{"smooth": {"strength": 0.5}}, *load_recipe("w8a8").to_dict()["stages"][1:]],
    "90 MB, int2 to int8": [budget(INTEGERS, 90)],
    "90 MB, nl2 to nl5 and int8": [budget(NONLINEAR, 90)],
    "paper": load_recipe("paper").without_training().to_dict()["stages"],
    "pruned heads": [
        {"prune": {"maximum": 0.34, "modules": ["attention"]}},
        *load_recipe("int8").to_dict()["stages"],
    ],
    "group-sparse": [
        {"sparsify": SPARSIFY},
        {"quantize": {"mode": "per_channel", "modules": ["embedding", "lm_head"]}},
    ],
}


@dataclass(frozen=True)
class Program:
    """Where checkpoints are read.

    Attributes:
        target: that they are exported as; None as they are.
        reader: of `predict.py`; None for vLLM, which has a script of its own.
        python: name of the option that says which one.
    """

    target: str | None
    reader: str | None
    python: str | None = None


PROGRAMS = {
    "transformers": Program(None, "transformers"),
    "vLLM": Program(None, None, "vllm"),
    "transformers, compressed-tensors": Program(
        "compressed-tensors", "transformers", "compressed_tensors"
    ),
    "vLLM, compressed-tensors": Program("compressed-tensors", None, "vllm"),
    "llama.cpp": Program("gguf", "llama.cpp", "llama"),
    "MLX": Program("mlx", "mlx", "mlx"),
}


def checkpoint(folder: Path, model: str, name: str) -> Path:
    """Made once."""
    place = folder / name.replace(" ", "-").replace(",", "")
    if not place.exists():
        fields = {"calibration": CALIBRATION, "stages": STAGES[name]}
        spqlm.compress(model, place, recipe=Recipe.from_dict(fields))
    return place


def exported(source: Path, program: Program) -> tuple[Path, dict]:
    """What the program reads, and why it is not what is stored, if it is not."""
    if program.target is None:
        return source, {}
    place = source.with_name(f"{source.name}.{program.target}")
    try:
        spqlm.export(source, program.target, place, overwrite=True)
    except SpqError as error:
        spqlm.export(source, program.target, place, overwrite=True, as_floats=True)
        return place, {"as_floats": str(error)}
    return place, {}


def run(command: list[object]) -> str:
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1] if done.stderr else "it failed"
        raise RuntimeError(last.removeprefix("[rank0]:").strip())
    return done.stdout


def read_by_vllm(python: Path, place: Path) -> dict:
    """Its own script compares with transformers in float32; kernels of integers want bfloat16."""
    dtype = "float32" if "compressed-tensors" not in place.name else "bfloat16"
    printed = run([python, HERE / "vllm_serving.py", place, "--dtype", dtype])
    row = json.loads(next(line for line in printed.splitlines() if line.startswith("{")))
    version = run([python, "-c", "import vllm; print(vllm.__version__)"]).split()[-1]
    return {"kl": row["kl"], "greedy": row["greedy"], "version": f"vllm {version}, {dtype}"}


def read(python: Path, reader: str, place: Path, source: Path) -> dict:
    """By `predict.py`."""
    ids = prompt_of(str(source))
    predicted, written = ours(str(source), ids)
    with tempfile.TemporaryDirectory() as folder:
        prompt, out = Path(folder) / "prompt.npy", Path(folder) / "out.npz"
        np.save(prompt, np.array(ids))
        version = run([python, PREDICT, reader, place, prompt, out, NEW]).splitlines()[-1]
        found = np.load(out)
        theirs, continued = found["predicted"], found["written"].tolist()
    wanted = predicted.numpy()
    divergence = (np.exp(wanted) * (wanted - theirs)).sum(-1).mean()
    alike = sum(one == other for one, other in zip(written, continued, strict=True))
    return {"kl": float(divergence), "greedy": f"{alike} of {NEW}", "version": version}


def measure(folder: Path, given: argparse.Namespace, name: str, title: str) -> dict | None:
    """A row, or None for a program that there is no Python for."""
    program = PROGRAMS[title]
    python = vars(given)[program.python] if program.python else given.python
    if python is None or not Path(python).exists():
        return None
    source = checkpoint(folder, given.model, name)
    row = {"model": given.model, "checkpoint": name, "program": title}
    try:
        place, notes = exported(source, program)
        row |= notes
        files = place.rglob("*") if place.is_dir() else [place]
        row["bytes"] = sum(f.stat().st_size for f in files if f.suffix in (".safetensors", ".gguf"))
        if program.reader is None:
            row |= read_by_vllm(python, place)
        else:
            row |= read(python, program.reader, place, source)
    except (RuntimeError, SpqError) as error:
        row["failed"] = str(error)
    return row | {"machine": machine()}


def place_of(row: dict) -> tuple[str, int, int]:
    """In the table."""
    program, name = row["program"], row["checkpoint"]
    return row["model"], list(STAGES).index(name), list(PROGRAMS).index(program)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--only", nargs="+", default=list(PROGRAMS), choices=PROGRAMS)
    parser.add_argument("--checkpoints", nargs="+", default=list(STAGES), choices=STAGES)
    parser.add_argument("--python", type=Path, default=shutil.which("python"))
    parser.add_argument("--llama", type=Path, default=python_of(default_folder(), "llama.cpp"))
    for name in ("vllm", "compressed-tensors", "mlx"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--keep", type=Path, help="directory that files stay in")
    given = parser.parse_args()
    folder = given.keep or Path(tempfile.mkdtemp(prefix="spq-bench-"))
    folder.mkdir(parents=True, exist_ok=True)
    stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": []}
    try:
        for name in given.checkpoints:
            for title in given.only:
                row = measure(folder, given, name, title)
                if row is None:
                    continue
                print(json.dumps(row), flush=True)
                key = (given.model, name, title)
                kept = [
                    r for r in stored["rows"] if (r["model"], r["checkpoint"], r["program"]) != key
                ]
                stored["rows"] = sorted([*kept, row], key=place_of)
                RESULTS.write_text(json.dumps(stored, indent=1) + "\n")
    finally:
        if given.keep is None:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
