"""Time of every kernel on a GPU, beside PyTorch's in bfloat16 and torchao's where it is installed.

    python benchmarks/cuda_kernels.py           # the shapes of a model of 7 billion parameters
    python benchmarks/cuda_kernels.py --shape 1536x576

Prints a table and writes benchmarks/results/cuda_kernels.json. Calls are captured in CUDA graphs,
so that the time Python takes to launch them does not count, each over several copies of the weight,
which together do not fit into the last cache. The graphs of all ways are replayed in turn, timed by
CUDA events; a figure is the median.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

RESULTS = Path(__file__).parent / "results" / "cuda_kernels.json"
SHAPES = ("4096x4096", "11008x4096", "4096x11008")
COUNTS = (1, 4, 16, 64, 512)
WORKING_SET = 2**28
GROUP = 64
SPARSE_GROUP = 16

Product = Callable[[Tensor], Tensor | None]


def random_codes(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, device="cuda")


def random_scale(*shape: int) -> Tensor:
    return (torch.randn(shape, device="cuda") / 64).to(torch.bfloat16)


def dense(out: int, width: int) -> tuple[int, Product]:
    weight = torch.randn(out, width, device="cuda", dtype=torch.bfloat16)
    return weight.nbytes, lambda x: functional.linear(x, weight)


def coded(out: int, width: int, bits: int) -> tuple[Tensor, Tensor]:
    if bits == 8:
        return random_codes(out, width).view(torch.int8), random_scale(out)
    return random_codes(out, width // 2), random_scale(out, width // GROUP)


def read_as_stored(out: int, width: int, bits: int) -> tuple[int, Product]:
    from spq.kernels.triton import linear
    from spq.kernels.triton.matrix import matrix_of

    stored = coded(out, width, bits)
    matrix = matrix_of(*stored, None)
    assert matrix is not None
    return nbytes(stored), lambda x: linear.read_codes(x, matrix, x.dtype)


def written_out(out: int, width: int, bits: int) -> tuple[int, Product]:
    from spq.kernels.triton import linear
    from spq.kernels.triton.matrix import matrix_of

    stored = coded(out, width, bits)
    matrix = matrix_of(*stored, None)
    assert matrix is not None
    return nbytes(stored), lambda x: functional.linear(x, linear.dequantized(matrix, x.dtype))


def low_rank(out: int, width: int) -> tuple[int, Product]:
    """Both factors in int8, at the rank that halves the number of weights."""
    from spq.kernels.triton import low_rank as product

    rank = out * width // (out + width) // 2 // 32 * 32
    right, left = coded(rank, width, 8), coded(out, rank, 8)
    return nbytes(right + left), lambda x: product(x, (*right, None), (*left, None))


def group_sparse(out: int, width: int) -> tuple[int, Product]:
    """Half of the groups kept, in 4 bits."""
    from spq.kernels.triton import sparse_product
    from spq.numerics.group_sparse import pack

    keep = torch.rand(out, width // SPARSE_GROUP, device="cuda") < 0.5
    codes = torch.randint(-8, 8, (out, width), dtype=torch.int8, device="cuda")
    weight = pack(codes, random_scale(*keep.shape), None, keep, bits=4)
    *tensors, _ = weight
    return nbytes(tuple(tensors)), lambda x: sparse_product(x, weight, None)


def torchao(out: int, width: int, bits: int) -> tuple[int, Product]:
    from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

    layer = nn.Linear(width, out, bias=False, dtype=torch.bfloat16, device="cuda")
    config = Int8WeightOnlyConfig() if bits == 8 else Int4WeightOnlyConfig(group_size=GROUP)
    quantize_(layer, config)
    scales = out if bits == 8 else out * width // GROUP
    return out * width * bits // 8 + 2 * scales, layer


WAYS: dict[str, Callable[[int, int], tuple[int, Product]]] = {
    "dense, PyTorch": dense,
    "int8": lambda out, width: read_as_stored(out, width, 8),
    "int8, written out": lambda out, width: written_out(out, width, 8),
    "int4": lambda out, width: read_as_stored(out, width, 4),
    "int4, written out": lambda out, width: written_out(out, width, 4),
    "int8 factors": low_rank,
    "half of int4's groups": group_sparse,
    "int8, torchao": lambda out, width: torchao(out, width, 8),
    "int4, torchao": lambda out, width: torchao(out, width, 4),
}


def nbytes(tensors: tuple[Tensor | None, ...]) -> int:
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def captured(
    make: Callable[[int, int], tuple[int, Product]], shape: tuple[int, int], x: Tensor
) -> tuple[int, int, torch.cuda.CUDAGraph]:
    """Bytes of the weight, and a graph of that many calls, each with a weight of its own."""
    size, first = make(*shape)
    copies = [first, *(make(*shape)[1] for _ in range(WORKING_SET // size))]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            if first(x) is None:
                raise ValueError("no kernel takes this")
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for copy in copies:
            copy(x)
    graph.copies = copies  # type: ignore[attr-defined]  # they must outlive the graph
    return size, len(copies), graph


def milliseconds(graph: torch.cuda.CUDAGraph) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    graph.replay()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def compare(shape: tuple[int, int], count: int, repeats: int) -> list[dict[str, object]]:
    from spq.kernels.triton import linear

    x = torch.randn(count, shape[1], device="cuda", dtype=torch.bfloat16)
    graphs, rows = {}, []
    for name, make in WAYS.items():
        if name in ("int8", "int4", "int8 factors") and count > linear.FEW_ROWS:
            continue
        try:
            graphs[name] = captured(make, shape, x)
        except (ImportError, RuntimeError, ValueError, AssertionError) as error:
            rows.append({"way": name, "not_measured": str(error).split("\n")[0]})
    taken: dict[str, list[float]] = {name: [] for name in graphs}
    for turn in range(repeats + 1):
        for name, (_, calls, graph) in graphs.items():
            spent = milliseconds(graph) / calls
            if turn:
                taken[name].append(spent)
    median = {name: statistics.median(spent) for name, spent in taken.items()}
    rows += [
        {
            "way": name,
            "microseconds": median[name] * 1e3,
            "best_microseconds": min(taken[name]) * 1e3,
            "gigabytes_per_second": size / median[name] / 1e6,
            "ratio_to_dense": median["dense, PyTorch"] / median[name],
        }
        for name, (size, _, _) in graphs.items()
    ]
    return [{"shape": f"{shape[0]}x{shape[1]}", "rows": count, **row} for row in rows]


def show(row: dict[str, object]) -> str:
    if "not_measured" in row:
        return f"  {row['way']:24s} not measured: {row['not_measured']}"
    return (
        f"  {row['way']:24s} {row['microseconds']:8.1f} µs {row['gigabytes_per_second']:7.0f} GB/s "
        f"{row['ratio_to_dense']:6.2f}x dense"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", action="append", help="OUTxIN; may be given several times")
    parser.add_argument("--rows", type=int, action="append", help=f"of input; default {COUNTS}")
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit(
            "benchmarks/cuda_kernels.py needs a CUDA GPU, and torch sees none on this machine."
        )
    import triton

    results = []
    for text in arguments.shape or SHAPES:
        out, width = (int(side) for side in text.split("x"))
        for count in arguments.rows or COUNTS:
            print(f"\n{text}, {count} rows of bfloat16")
            rows = compare((out, width), count, arguments.repeats)
            print("\n".join(show(row) for row in rows), flush=True)
            results += rows
    record = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "results": results,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(record, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
