"""Products on a GPU against float64, in the shapes of large models; exits with 1 where one is off.

    python benchmarks/cuda_checks.py [--shape 4096x4096] [--json FILE]

Every width, one row of input to thousands, in bfloat16, with a bias. Tests compare small shapes;
here a row is as long as it is in use, and all processors of the GPU are busy. An error is the norm
of the difference over the norm of what float64 gives. Writes
benchmarks/results/cuda_checks.json.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from cuda_kernels import CODED, DEVICE, coded

RESULTS = Path(__file__).parent / "results" / "cuda_checks.json"
SHAPES = ("4096x4096", "1000x11008")
COUNTS = (1, 2, 16, 64, 65, 200, 512, 2048)
BOUND = 4e-3
"""bfloat16 keeps eight bits: rounding weights, and then the output, takes half of this."""


@torch.no_grad()
def errors(out: int, width: int, kind: str) -> dict[int, float]:
    """By rows of input."""
    from spqlm.kernels.triton import linear

    stored = coded(out, width, kind)
    weight = stored.restore(torch.float64)
    bias = torch.randn(out, device=DEVICE, dtype=torch.bfloat16)
    found = {}
    for count in COUNTS:
        x = torch.randn(count, width, device=DEVICE, dtype=torch.bfloat16)
        wanted = x.double() @ weight.T + bias.double()
        y = linear.product(x, stored, bias)
        assert y is not None, f"no kernel took {kind}"
        found[count] = float((y.double() - wanted).norm() / wanted.norm())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", action="append", help="OUTxIN; may be given several times")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the figures go")
    arguments = parser.parse_args()
    if DEVICE == "cuda" and not torch.cuda.is_available():
        raise SystemExit("benchmarks/cuda_checks.py needs a CUDA GPU, and torch sees none here.")
    torch.manual_seed(0)
    record: dict[str, Any] = {"bound": BOUND, "results": []}
    for text in arguments.shape or SHAPES:
        out, width = (int(side) for side in text.split("x"))
        for kind in CODED:
            found = errors(out, width, kind)
            record["results"].append({"shape": text, "format": kind, "errors": found})
            print(f"{text} {kind}: {max(found.values()):.1e} at most", flush=True)
            arguments.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    wrong = [
        (row["shape"], row["format"], count)
        for row in record["results"]
        for count, error in row["errors"].items()
        if not error <= BOUND
    ]
    if wrong:
        raise SystemExit(f"further from float64 than {BOUND} (shape, format, rows): {wrong}")


if __name__ == "__main__":
    main()
