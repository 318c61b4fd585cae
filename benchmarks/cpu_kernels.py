"""Bytes per second of every kernel, beside PyTorch's, and where one way overtakes another.

    python benchmarks/cpu_kernels.py                # 4096 x 4096 and 11008 x 4096
    python benchmarks/cpu_kernels.py --shape 1536x576

Prints tables and writes benchmarks/results/kernels.json. Every timing is the median (and the best)
of runs that alternate between the ways compared, each over several copies of the weight, which
together do not fit into any cache.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from spqlm import native
from spqlm.evaluation.machine import processor
from spqlm.formats import StoredWeight, format_class
from spqlm.formats.int8 import Int8
from spqlm.kernels.product import FEW_ROWS, linear
from spqlm.kernels.weights import matrix_of

RESULTS = Path(__file__).parent / "results" / "kernels.json"
COUNTS = (1, 2, 4, 8, 16, 32, 512)
WORKING_SET = 2**28
GROUP = 64


def timed(ways: dict[str, Callable[[], object]], repeats: int) -> dict[str, tuple[float, float]]:
    """Seconds of each way: median and least."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: (statistics.median(taken), min(taken)) for name, taken in seconds.items()}


def read_bandwidth() -> float:
    """Bytes per second of reading memory in order: the best of several sums."""
    data = torch.ones(WORKING_SET // 4)
    _, best = timed({"sum": data.sum}, 5)["sum"]
    return WORKING_SET / best


class Weights:
    """As many copies of a weight as the working set holds, handed out in turn."""

    def __init__(self, make: Callable[[], tuple[Tensor, ...]]) -> None:
        first = make()
        self.bytes = sum(tensor.nbytes for tensor in first)
        more = range(WORKING_SET // self.bytes)
        self.copies = [first, *(tuple(tensor.clone() for tensor in first) for _ in more)]
        self.turn = 0

    def next(self) -> tuple[Tensor, ...]:
        self.turn += 1
        return self.copies[self.turn % len(self.copies)]


class StoredWeights(Weights):
    """The same of a stored weight, also as the native kernels see it."""

    def __init__(self, weight: StoredWeight) -> None:
        names = weight.tensors()
        super().__init__(lambda: tuple(names.values()))
        copies = (dict(zip(names, copy, strict=True)) for copy in self.copies)
        self.weights = [replace(weight, **tensors) for tensors in copies]
        self.matrices = [matrix_of(weight, None) for weight in self.weights]

    def weight(self) -> StoredWeight:
        self.turn += 1
        return self.weights[self.turn % len(self.weights)]

    def matrix(self) -> native.Matrix:
        self.turn += 1
        matrix = self.matrices[self.turn % len(self.matrices)]
        assert matrix is not None
        return matrix


def int8(out: int, width: int, dtype: torch.dtype) -> StoredWeight:
    codes = torch.randint(-127, 128, (out, width), dtype=torch.int8)
    scale = (torch.rand(out) / 64 + 0.01).to(dtype)
    return Int8().hold({"codes": codes, "scale": scale}, width)


def grouped(
    kind: str, out: int, width: int, dtype: torch.dtype, group_size: int = GROUP
) -> StoredWeight:
    form = format_class(kind)(group_size=group_size)
    codes = torch.randint(0, 256, (out, width * form.bits // 8), dtype=torch.uint8)
    scale = (torch.randn(out, width // group_size) / 8).to(dtype)
    return form.hold({"codes": codes, "scale": scale}, width)


def int4(out: int, width: int, dtype: torch.dtype, group_size: int = GROUP) -> StoredWeight:
    return grouped("int4", out, width, dtype, group_size)


def compare(
    out: int, width: int, count: int, dtype: torch.dtype, repeats: int
) -> list[dict[str, object]]:
    x = torch.randn(count, width).to(dtype)
    eight = StoredWeights(int8(out, width, dtype))
    four = StoredWeights(int4(out, width, dtype))
    dense = Weights(lambda: (torch.randn(out, width).to(dtype),))
    ways: dict[str, tuple[Weights, Callable[[], object]]] = {
        "dense, PyTorch": (dense, lambda: functional.linear(x, *dense.next())),
        "int8": (eight, lambda: linear(x, eight.weight(), None)),
        "int4": (four, lambda: linear(x, four.weight(), None)),
    }
    if count <= 2 * FEW_ROWS and native.library() is not None:
        # Both sides of the crossover, whatever it is set to.
        ways["int8, dequantised"] = (eight, lambda: functional.linear(x, dequantised(eight, dtype)))
        ways["int8, codes read"] = (eight, lambda: codes_read(eight, x))
        ways["int4, codes read"] = (four, lambda: codes_read(four, x))
    if dtype == torch.bfloat16 and count <= 32:
        ways["int8, PyTorch's int8pack"] = (
            eight,
            lambda: torch.ops.aten._weight_int8pack_mm(x, *eight.next()),
        )
    taken = timed({name: way for name, (_, way) in ways.items()}, repeats)
    return [
        {
            "shape": f"{out}x{width}",
            "rows": count,
            "dtype": str(dtype).removeprefix("torch."),
            "way": name,
            "milliseconds": taken[name][0] * 1e3,
            "best_milliseconds": taken[name][1] * 1e3,
            "gigabytes_per_second": weights.bytes / taken[name][0] / 1e9,
            "best_gigabytes_per_second": weights.bytes / taken[name][1] / 1e9,
            "ratio_to_dense": taken["dense, PyTorch"][0] / taken[name][0],
        }
        for name, (weights, _) in ways.items()
    ]


def dequantised(weights: StoredWeights, dtype: torch.dtype) -> Tensor:
    matrix, library = weights.matrix(), native.library()
    assert library is not None
    weight = torch.empty(matrix.rows, matrix.columns, dtype=dtype)
    native.dequantize(library, matrix, 0, matrix.rows, weight)
    return weight


def codes_read(weights: StoredWeights, x: Tensor) -> Tensor:
    library = native.library()
    assert library is not None
    return native.linear(library, x, weights.matrix())


def check() -> None:
    """A fast wrong answer is worth nothing."""
    x = torch.randn(1, 4096)
    for weight in (int8(64, 4096, torch.float32), int4(64, 4096, torch.float32)):
        expected = x.double() @ weight.restore(torch.float64).T
        off = (linear(x, weight, None) - expected).abs().max() / expected.abs().max()
        if float(off) > 1e-5:
            raise SystemExit(f"the product in {weight.format.name} is off by {float(off):.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", action="append", help="OUTxIN; may be given several times")
    parser.add_argument("--rows", type=int, action="append", help=f"of input; default {COUNTS}")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    check()
    library = native.library()
    kernels = "PyTorch" if library is None else native.instruction_set(library)
    bandwidth = read_bandwidth()
    print(f"kernels: {kernels}; threads: {arguments.threads}; reads {bandwidth / 1e9:.1f} GB/s")
    results = []
    for shape in arguments.shape or ("4096x4096", "11008x4096"):
        out, width = (int(side) for side in shape.split("x"))
        for count in arguments.rows or COUNTS:
            print(f"\n{shape}, {count} rows of {arguments.dtype}")
            repeats = max(3, arguments.repeats // (1 + count // 64))
            dtype = getattr(torch, arguments.dtype)
            for row in compare(out, width, count, dtype, repeats):
                print(
                    f"  {row['way']:26s} {row['milliseconds']:8.2f} ms "
                    f"{row['gigabytes_per_second']:6.1f} GB/s "
                    f"(best {row['best_gigabytes_per_second']:5.1f}) "
                    f"{row['ratio_to_dense']:6.2f}x dense"
                )
                results.append(row)
    RESULTS.parent.mkdir(exist_ok=True)
    machine = {"processor": processor(), "torch": torch.__version__}
    record = {
        **machine,
        "kernels": kernels,
        "threads": arguments.threads,
        "read_bandwidth": bandwidth,
        "results": results,
    }
    RESULTS.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
