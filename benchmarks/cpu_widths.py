"""Native kernels of 2 to 8 bits beside each other and beside PyTorch's dense product, in bfloat16.

    python benchmarks/cpu_widths.py                      # shapes of a 7B and of SmolLM2-135M
    python benchmarks/cpu_widths.py --shape 4096x4096 --repeats 41

Levels of nl2 to nl5 are looked up, those of the others are evenly spaced. One row of input with
one and two threads: bytes per second, and their ratio to those of 4 bits.
More rows: the speed against the dense product, also of int8 whose inputs become int8 where there
are more than 16 (w8a8). Ways take turns over copies of the weight that
together do not fit into any cache; ratios are medians over turns.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cpu_kernels import GROUP, StoredWeights, Weights, grouped, int8, read_bandwidth
from torch.nn import functional

from spqlm import native
from spqlm.evaluation.machine import processor
from spqlm.kernels.dynamic_int8 import dynamic_int8_linear
from spqlm.kernels.product import linear
from spqlm.kernels.weights import GROUPED

RESULTS = Path(__file__).parent / "results" / "widths.json"
SHAPES = ("4096x4096", "11008x4096", "4096x11008", "576x576", "1536x576", "49152x576")
MORE = (8, 16, 32, 128, 512)
# Of a measurement of one row, at least: small weights are read several times.
SECONDS = 1e-3
W8A8 = "w8a8"


def in_turn(
    ways: dict[str, Callable[[], object]], repeats: int, calls: int
) -> dict[str, list[float]]:
    """Seconds of a call of each way, once for every turn."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            for _ in range(calls):
                way()
            if turn:
                seconds[name].append((time.perf_counter() - start) / calls)
    return seconds


def codes_read(weights: StoredWeights, x: torch.Tensor, threads: int) -> Callable[[], object]:
    """The native product without what Python does around it: small weights take no longer."""
    library = native.library()
    assert library is not None
    y = torch.empty(len(x), weights.matrix().rows, dtype=x.dtype)

    def product() -> None:
        library.spq_linear(
            *(weights.matrix(), None, x.data_ptr(), native.DTYPES[x.dtype]),
            *(len(x), y.data_ptr(), threads),
        )

    return product


def inputs_in_int8(weights: StoredWeights, x: torch.Tensor) -> torch.Tensor:
    """As a layer of the format w8a8 multiplies."""
    weight = weights.weight()
    found = dynamic_int8_linear(x, weight.codes, weight.scale, None)
    return linear(x, weight, None) if found is None else found


def stored(shape: str) -> dict[str, Any]:
    """Weights of every width by their names."""
    out, width = (int(side) for side in shape.split("x"))
    dtype = torch.bfloat16
    weights: dict[str, Any] = {
        kind: StoredWeights(grouped(kind, out, width, dtype)) for kind in GROUPED
    }
    weights["int8"] = StoredWeights(int8(out, width, dtype))
    weights[W8A8] = weights["int8"]
    weights["bfloat16"] = Weights(lambda: (torch.randn(out, width).to(dtype),))
    return weights


def compare(
    shape: str, rows: int, threads: int, repeats: int, weights: dict[str, Any]
) -> list[dict]:
    """A row of the table for each weight."""
    x = torch.randn(rows, int(shape.split("x")[1])).to(torch.bfloat16)
    torch.set_num_threads(threads)
    ways: dict[str, Callable[[], object]] = {}
    for name, held in weights.items():
        if name == "bfloat16":
            ways[name] = lambda held=held: functional.linear(x, *held.next())
        elif name == W8A8:
            if rows > 1:
                ways[name] = lambda held=held: inputs_in_int8(held, x)
        elif rows == 1:
            ways[name] = codes_read(held, x, threads)
        else:
            ways[name] = lambda held=held: linear(x, held.weight(), None)
    once = min(in_turn({"int4": ways["int4"]}, 3, 1)["int4"])
    taken = in_turn(ways, repeats, max(1, int(SECONDS / once)) if rows == 1 else 1)
    rates = {name: [weights[name].bytes / t for t in taken[name]] for name in ways}

    def ratio(left: list[float], right: list[float]) -> float:
        return statistics.median(a / b for a, b in zip(left, right, strict=True))

    return [
        {
            "shape": shape,
            "rows": rows,
            "threads": threads,
            "way": name,
            "microseconds": statistics.median(taken[name]) * 1e6,
            "gigabytes_per_second": statistics.median(rates[name]) / 1e9,
            "rate_to_int4": ratio(rates[name], rates["int4"]),
            "speed_to_dense": ratio(taken["bfloat16"], taken[name]),
        }
        for name in ways
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", action="append", help="OUTxIN; may be given several times")
    parser.add_argument("--threads", type=int, action="append", help="default 1 and 2")
    parser.add_argument("--rows", type=int, action="append", help="beside one; default 8 to 512")
    parser.add_argument("--repeats", type=int, default=25, help="turns of one row of input")
    arguments = parser.parse_args()
    library = native.library()
    if library is None:
        raise SystemExit("the native library is not built")
    threads = arguments.threads or [1, 2]
    bandwidth, results = read_bandwidth(), []
    print(f"kernels: {native.instruction_set(library)}; reads {bandwidth / 1e9:.1f} GB/s")
    for shape in arguments.shape or SHAPES:
        weights = stored(shape)
        for rows in (1, *(arguments.rows or MORE)):
            for count in threads if rows == 1 else threads[-1:]:
                repeats = arguments.repeats if rows == 1 else max(5, arguments.repeats // 4)
                print(f"\n{shape}, {rows} rows, {count} threads, groups of {GROUP}")
                for row in compare(shape, rows, count, repeats, weights):
                    print(
                        f"  {row['way']:9s} {row['microseconds']:9.1f} us "
                        f"{row['gigabytes_per_second']:6.2f} GB/s {row['rate_to_int4']:5.2f}x int4 "
                        f"{row['speed_to_dense']:6.2f}x dense"
                    )
                    results.append(row)
    record = {
        "processor": processor(),
        "torch": torch.__version__,
        "kernels": native.instruction_set(library),
        "read_bandwidth": bandwidth,
        "results": results,
    }
    RESULTS.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
