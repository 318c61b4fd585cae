"""GGUF files at the same bytes: llama.cpp's quantiser and ours; benchmarks/results/gguf_sizes.json.

    SPQ_DATA_DIR=... python benchmarks/gguf_sizes.py [--kinds q4_k_m q2_k ...] [--recover | --quick]
        [--own] [--calibration-windows 32] [--model demo] [--windows 20] [--python PYTHON]
        [--threads 1] [--keep DIR]

For each file type llama.cpp quantises the float32 file with and without an importance matrix,
E[x²] over the windows that ours is calibrated on: those of the recipe `default`, or with `--quick`
a quarter of them, of wikitext2_valid, and GPTQ without descent; `--calibration-windows` takes
fewer, for both sides, on a slow machine. The bytes of the file with the
matrix are the target size of `spq compress --for gguf`; `spq export` writes ours. With `--own`,
ours takes formats that GGUF lacks, and is written as wider types of the same numbers, or as
float32, to be scored; its bytes are those of its checkpoint. llama.cpp itself
scores every file on the first windows of 1,024 tokens of WikiText-2 (raw, test): Δ is the loss
above that of the float32 file, and the divergence is KL from its predictions. A model that is a
file is called by its name. PYTHON is one with llama-cpp-python; `benchmarks/peers/setup.py
llama.cpp` makes one.

Rows that are stored are not measured again.
"""

import argparse
import json
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path

import gguf
import numpy as np
import torch
from compress import CONTEXT, WINDOWS, machine
from peers.environments import default_folder, python_of
from quick import quick
from torch import nn

import spqlm
from spqlm.calibration.gather import Calibration, CalibrationConfig
from spqlm.calibration.statistics import draw_windows
from spqlm.data import consecutive, encode, load_text
from spqlm.kernels.widening import widened_products
from spqlm.model.view import ModelView
from spqlm.recipe import Recipe, load_recipe
from spqlm.sources.load import load_model
from spqlm.targets._gguf_keys import architecture

RESULTS = Path(__file__).parent / "results" / "gguf_sizes.json"
WORKERS = Path(__file__).parent / "peers" / "workers"
KINDS = ("q4_k_m", "q3_k_m", "q6_k", "q5_k_m", "iq4_xs", "q2_k", "q8_0", "iq4_nl", "q4_0")
PLAIN, WEIGHED, QUICK, OURS, TRAINED = (
    "llama.cpp",
    "llama.cpp, importance matrix",
    "spq, GPTQ alone",
    "spq, no training",
    "spq",
)


def asked(arguments: argparse.Namespace) -> tuple[str, Recipe]:
    """What ours is made by, and how."""
    if arguments.quick:
        by, recipe = QUICK, quick(arguments.calibration_windows)
    else:
        by, recipe = (TRAINED if arguments.recover else OURS), load_recipe("default")
    return (f"{by}, own formats" if arguments.own else by), recipe


class Bench:
    """Files in a folder, and what was measured of them."""

    def __init__(self, folder: Path, arguments: argparse.Namespace) -> None:
        self.folder, self.arguments = folder, arguments
        self.by, self.recipe = asked(arguments)
        self.model = Path(arguments.model).stem
        self.dense = folder / "dense.gguf"
        self.stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": []}

    def worker(self, script: str, *given: object) -> str:
        command = [self.arguments.python, WORKERS / script, *given]
        done = subprocess.run(
            [str(word) for word in command], check=True, stdout=subprocess.PIPE, text=True
        )
        return done.stdout

    def prepare(self) -> None:
        """The float32 file, the text and the importance of inputs."""
        name = self.arguments.model
        if not self.dense.exists():
            spqlm.export(name, "gguf", self.dense, dtype=torch.float32)
        # In the dtype that ours is calibrated in, for the same text where the model writes it.
        loaded = load_model(name)
        text = encode(loaded.tokenizer, load_text("wikitext2", "evaluation").text, CONTEXT)
        windows = consecutive(text, CONTEXT, self.arguments.windows)
        np.save(self.folder / "windows.npy", windows.numpy())
        if not self.importance.exists():
            np.savez(self.importance, **importance(loaded, self.recipe.calibration))
        if not (self.folder / "dense.npy").exists():
            self.scored(self.dense)

    @property
    def importance(self) -> Path:
        given = self.recipe.calibration
        return self.folder / f"importance-{given.source}-{given.windows}.npz"

    def scored(self, file: Path) -> dict:
        files = (file, self.folder / "windows.npy", self.folder / "dense.npy")
        return json.loads(self.worker("score_gguf.py", *files, self.arguments.threads))

    def held(self, kind: str, by: str) -> dict | None:
        text = self.recipe.calibration
        wanted = (self.model, kind, by, text.source, text.windows)
        fields = ("model", "kind", "by", "calibration", "calibration_windows")
        rows = self.stored["rows"]
        return next((r for r in rows if tuple(r[name] for name in fields) == wanted), None)

    def theirs(self, kind: str, by: str) -> dict:
        """A file of llama.cpp's quantiser."""
        row, file = self.held(kind, by), self.folder / "theirs.gguf"
        if row is None:
            given = [self.importance] if by == WEIGHED else []
            started = time.perf_counter()
            self.worker("make_gguf.py", self.dense, file, kind, *given)
            row = self.keep(kind, by, file, time.perf_counter() - started)
        return row

    def ours(self, kind: str, target: int) -> None:
        """A file of ours of at most so many bytes."""
        out, file = self.folder / "out", self.folder / "out.gguf"
        if self.held(kind, self.by) is not None:
            return
        started = time.perf_counter()
        manifest = spqlm.compress(
            self.arguments.model,
            out,
            recipe=self.recipe,
            target_size=target,
            export_target=None if self.arguments.own else "gguf",
            recover=self.arguments.recover,
            overwrite=True,
        ).manifest
        seconds = time.perf_counter() - started
        more: dict[str, object] = {"predicted": manifest.predicted_loss}
        if self.arguments.own:
            spqlm.export(out, "gguf", file, as_floats=True, dtype=torch.float32, overwrite=True)
            changes = manifest.stages[0].plan.changes
            more["bytes"] = manifest.sizes.disk
            more["types"] = dict(Counter(change.stored_as.codes for change in changes))
        else:
            spqlm.export(out, "gguf", file, overwrite=True)
        self.keep(kind, self.by, file, seconds, **more)

    def keep(self, kind: str, by: str, file: Path, seconds: float, **more: object) -> dict:
        tensors = gguf.GGUFReader(file).tensors
        row = {
            "model": self.model,
            "kind": kind,
            "by": by,
            "calibration": self.recipe.calibration.source,
            "calibration_windows": self.recipe.calibration.windows,
            "bytes": file.stat().st_size,
            **self.scored(file),
            "windows": self.arguments.windows,
            "types": dict(Counter(tensor.tensor_type.name for tensor in tensors)),
            "seconds": seconds,
            "machine": machine(),
            **more,
        }
        row["delta"] = row["nll"] - self.dense_loss()
        print(json.dumps(row), flush=True)
        self.stored["rows"].append(row)
        RESULTS.write_text(json.dumps(self.stored, indent=1) + "\n")
        return row

    def dense_loss(self) -> float:
        """Of the float32 file, from its stored predictions."""
        windows = np.load(self.folder / "windows.npy")
        wanted = np.load(self.folder / "dense.npy", mmap_mode="r")
        places = np.arange(CONTEXT - 1)
        pairs = zip(wanted[: len(windows)], windows, strict=True)
        return float(np.mean([-held[places, window[1:]].mean() for held, window in pairs]))


@torch.inference_mode()
def importance(loaded, config: CalibrationConfig) -> dict[str, np.ndarray]:
    """E[x²] of the inputs of each linear layer, by its weight's name in a GGUF file."""
    view = ModelView(loaded.model)
    ids = Calibration(config, view, loaded.tokenizer, 0).ids
    windows = draw_windows(loaded.model, ids, config.context, config.windows, 0)
    arch = architecture(loaded.model.config).name
    key = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    names = gguf.get_tensor_name_map(key, len(view.layers))
    sums: dict[str, torch.Tensor] = {}

    def hook(name: str):
        def add(module: nn.Module, given: tuple) -> None:
            squares = given[0].flatten(0, -2).float().square().sum(0)
            sums[name] = sums.get(name, torch.zeros(())) + squares

        return add

    for named in view.leaves():
        found = names.get_name(f"{named.name}.weight", try_suffixes=(".weight",))
        named.module.register_forward_pre_hook(hook(found))
    with widened_products(loaded.model.dtype):
        for window in windows:
            loaded.model.model(input_ids=window[None])
    return {name: (total / windows.numel()).numpy() for name, total in sums.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", default=KINDS)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--recover", action="store_true", help="also train ours")
    parser.add_argument("--quick", action="store_true", help="ours in minutes, and a little worse")
    parser.add_argument("--own", action="store_true", help="formats of ours, not those of GGUF")
    parser.add_argument("--calibration-windows", type=int, default=32, help="with --quick")
    parser.add_argument("--without-plain", action="store_true", help="only with the matrix")
    parser.add_argument("--python", default=python_of(default_folder(), "llama.cpp"))
    parser.add_argument("--windows", type=int, default=WINDOWS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="directory that files stay in")
    arguments = parser.parse_args()
    folder = arguments.keep or Path(tempfile.mkdtemp(prefix="spq-bench-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        bench = Bench(folder, arguments)
        bench.prepare()
        for kind in arguments.kinds:
            bench.ours(kind, bench.theirs(kind, WEIGHED)["bytes"])
        for kind in [] if arguments.without_plain else arguments.kinds:
            bench.theirs(kind, PLAIN)
    finally:
        if arguments.keep is None:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
