"""Rounding a weight on a GPU: how long it takes, and whether it is as good as on a CPU.

    python benchmarks/cuda_fitting.py [--shape 4096x4096] [--json FILE]

GPTQ with a descent behind it, in a metric whose channels differ and lean on each other: by the
kernel in Triton, and by PyTorch column after column. Rows know nothing of each other, so some of
them are rounded on the CPU as well, and their losses are compared; exits with 1 where one is off by
more than BOUND. Writes benchmarks/results/cuda_fitting.json.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from cuda_kernels import DEVICE
from torch import Tensor

from spqlm import formats
from spqlm.formats import Format
from spqlm.native import columns
from spqlm.numerics.metric import Metric

RESULTS = Path(__file__).parent / "results" / "cuda_fitting.json"
SHAPES = ("4096x4096",)
FORMATS = ({"int4": {"group_size": 64}}, {"nl4": {"group_size": 64}}, {"q4_k": {}})
ROWS = 32
"""That are rounded on the CPU, too."""
BOUND = 0.02
"""A code that another order of sums turns over changes the loss by less."""


def metric_of(width: int) -> Metric:
    """On the CPU."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(2 * width, width, generator=generator)
    rows *= torch.linspace(0.2, 2, width)
    rows += 0.5 * rows.roll(1, dims=1)
    return Metric([(rows.T @ rows / len(rows), torch.ones(1))])


def moved(metric: Metric) -> Metric:
    return Metric([(hessian.to(DEVICE), output.to(DEVICE)) for hessian, output in metric.terms])


def timed(form: Format, weight: Tensor, metric: Metric) -> tuple[Tensor, float]:
    """The weight as it is stored, and seconds."""
    started = time.perf_counter()
    found = form.fit(weight, metric, "descent").restore(torch.float32)
    found = found.cpu()  # Waits for it.
    return found, time.perf_counter() - started


def loss(error: Tensor, metric: Metric) -> float:
    return float(metric.row_losses(error).sum())


def measured(fields: dict, weight: Tensor, metric: Metric) -> dict[str, Any]:
    """Of one format."""
    form, there, device = formats.parse(fields), moved(metric), weight.to(DEVICE)
    timed(form, device[:ROWS], there)  # Compiles.
    found, seconds = timed(form, device, there)
    on_gpu = columns._on_gpu
    try:
        columns._on_gpu = lambda *_: None
        _, plain = timed(form, device, there)
    finally:
        columns._on_gpu = on_gpu
    some = weight[:ROWS]
    here, _ = timed(form, some, metric)
    ratio = loss(found[:ROWS] - some, metric) / loss(here - some, metric)
    return {"format": form.name, "seconds": seconds, "pytorch": plain, "of_cpu_loss": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", action="append", help="OUTxIN; may be given several times")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the figures go")
    arguments = parser.parse_args()
    if DEVICE == "cuda" and not torch.cuda.is_available():
        raise SystemExit("benchmarks/cuda_fitting.py needs a CUDA GPU, and torch sees none here.")
    record: dict[str, Any] = {"bound": BOUND, "results": []}
    for text in arguments.shape or SHAPES:
        out, width = (int(side) for side in text.split("x"))
        weight = torch.randn(out, width, generator=torch.Generator().manual_seed(0))
        metric = metric_of(width)
        for fields in FORMATS:
            row = {"shape": text} | measured(fields, weight, metric)
            record["results"].append(row)
            print(json.dumps(row), flush=True)
            arguments.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    wrong = [row for row in record["results"] if abs(row["of_cpu_loss"] - 1) > BOUND]
    if wrong:
        raise SystemExit(f"these are not as on the CPU: {wrong}")


if __name__ == "__main__":
    main()
