"""Every check and figure that needs a CUDA GPU, in one call of at most eight minutes.

    python benchmarks/gpu.py [--json FILE]        # or: make gpu

The tests of the kernels in Triton, compiled this time, and of layers that go to the GPU one by one;
products of every width and many shapes against float64 (cuda_checks.py); the time of every kernel
beside PyTorch's in bfloat16, few rows of input and many (cuda_kernels.py); rounding of a weight
(cuda_fitting.py); and decoding of a model in the shape of a large one (cuda_decode.py). Each part
has its share of the time, and is stopped when that is over; what it found by then is kept. Prints a
line for each part and writes benchmarks/results/gpu.json. Exits with 1 where a part fails or is
stopped.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from spqlm.checkpoint.atomic import write_text

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "gpu.json"
LINES = 15
"""Of what a part printed last that are kept."""

MEMORY = "tests/pipeline/test_memory.py"


class Part(NamedTuple):
    """A program that is run.

    Attributes:
        name: in the record.
        seconds: when it is stopped.
        arguments: of Python; `{json}` is where its figures go.
    """

    name: str
    seconds: float
    arguments: tuple[str, ...]


PARTS = (
    Part(
        "checks",
        140,
        (
            # Most of the time goes into compiling, on the processor.
            *("-m", "pytest", "-q", "-n", "6", "-m", "not slow"),
            *(
                "tests/kernels/triton",
                "tests/kernels/test_gpu.py",
                "tests/numerics/test_in_order.py",
                f"{MEMORY}::test_layers_that_go_to_a_device_one_by_one_give_the_same",
            ),
        ),
    ),
    Part("numbers", 60, ("benchmarks/cuda_checks.py", "--json", "{json}")),
    Part(
        "few rows",
        70,
        (
            *("benchmarks/cuda_kernels.py", "--shape", "4096x4096", "--json", "{json}"),
            *("--rows", "1", "--rows", "16", "--rows", "64", "--repeats", "10"),
        ),
    ),
    Part(
        "many rows",
        70,
        (
            *("benchmarks/cuda_kernels.py", "--shape", "4096x4096", "--json", "{json}"),
            *("--rows", "512", "--rows", "128", "--rows", "2048", "--repeats", "10"),
        ),
    ),
    Part("fitting", 40, ("benchmarks/cuda_fitting.py", "--json", "{json}")),
    Part("decoding", 95, ("benchmarks/cuda_decode.py", "--layers", "8", "--json", "{json}")),
)


def run(part: Part) -> dict[str, Any]:
    """What became of a part, with its figures and the end of what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        arguments = [argument.format(json=file) for argument in part.arguments]
        started = time.perf_counter()
        child = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # So that what it started is stopped with it.
        )
        try:
            said, _ = child.communicate(timeout=part.seconds)
            outcome = "done" if child.returncode == 0 else f"failed with {child.returncode}"
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            said, _ = child.communicate()
            outcome = f"stopped after {part.seconds:g} s"
        return {
            "part": part.name,
            "command": " ".join(("python", *part.arguments)),
            "outcome": outcome,
            "seconds": round(time.perf_counter() - started, 1),
            "printed": said.splitlines()[-LINES:],
            "figures": json.loads(file.read_text(encoding="utf-8")) if file.exists() else None,
        }


def main(parts: tuple[Part, ...] = PARTS) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the record goes")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/gpu.py needs a CUDA GPU, and torch sees none on this machine.")
    record: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "parts": [],
    }
    for part in parts:
        record["parts"].append(found := run(part))
        print(f"{part.name:10s} {found['seconds']:6.1f} s  {found['outcome']}", flush=True)
        write_text(arguments.json, json.dumps(record, indent=1) + "\n")
    print(f"wrote {arguments.json}")
    if any(found["outcome"] != "done" for found in record["parts"]):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
