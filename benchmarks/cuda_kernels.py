"""Time of every kernel on a GPU, beside PyTorch's in bfloat16 and those of other projects.

    python benchmarks/cuda_kernels.py           # the shapes of a model of 7 billion parameters
    python benchmarks/cuda_kernels.py --shape 1536x576 --json FILE
    python benchmarks/cuda_kernels.py --ways int8 int4 --rows 1

For more than 64 rows of input every tile that the GPU's kernels may choose is measured, too.
torchao is measured where it is installed, PyTorch's 2:4 sparsity where its kernels take the shape,
and GPTQModel's ExLlamaV2 kernel, with the inputs in float16, where `--exllama DIR` says where its
source is (gptqmodel_ext/exllamav2), which is compiled here.

Prints a table and writes benchmarks/results/cuda_kernels.json. Calls are captured in CUDA graphs,
so that the time Python takes to launch them does not count, each over several copies of the weight,
which together do not fit into the last cache. The graphs of all ways are replayed in turn, timed by
CUDA events; a figure is the median.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from spqlm import formats
from spqlm.formats import StoredWeight
from spqlm.formats.group_sparse import pack
from spqlm.formats.int8 import Int8
from spqlm.kernels.weights import GROUPED

if TYPE_CHECKING:
    from spqlm.kernels.triton.sparse_linear import Stored

RESULTS = Path(__file__).parent / "results" / "cuda_kernels.json"
SHAPES = ("4096x4096", "11008x4096", "4096x11008")
COUNTS = (1, 2, 4, 8, 16, 64, 512)
WORKING_SET = 2**28
DEVICE = "cuda"
GROUP = 64
SPARSE_GROUP = 16
CODED = ("int8", "int7", "int6", "int5", "int4", "nl4", "int3", "int2")
TILED = ("int8", "int4", "nl4", "int3")

Product = Callable[[Tensor], Tensor | None]


def random_codes(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, device=DEVICE)


def random_scale(*shape: int) -> Tensor:
    return (torch.randn(shape, device=DEVICE) / 64).to(torch.bfloat16)


def dense(out: int, width: int) -> tuple[int, Product]:
    weight = torch.randn(out, width, device=DEVICE, dtype=torch.bfloat16)
    return weight.nbytes, lambda x: functional.linear(x, weight)


def coded(out: int, width: int, kind: str) -> StoredWeight:
    if kind == "int8":
        codes = random_codes(out, width).view(torch.int8)
        return Int8().hold({"codes": codes, "scale": random_scale(out)}, width)
    form = formats.parse({kind: {"group_size": GROUP}})
    codes = random_codes(out, width * GROUPED[kind] // 8)
    scale = random_scale(out, width // GROUP)
    return form.hold({"codes": codes, "scale": scale}, width)


def as_dispatched(out: int, width: int, kind: str) -> tuple[int, Product]:
    """What a layer runs."""
    from spqlm.kernels.triton import linear

    stored = coded(out, width, kind)
    return nbytes(stored), lambda x: linear.product(x, stored, None)


def in_tiles(out: int, width: int, kind: str, number: int) -> tuple[int, Product]:
    """The tile of that number, the largest first, among those of this GPU."""
    from spqlm.kernels.triton import linear, tiles
    from spqlm.kernels.triton.matrix import matrix_of

    stored = coded(out, width, kind)
    matrix = matrix_of(stored, None)
    assert matrix is not None
    tile = tiles.tiles_on(stored.codes.device)[number]  # type: ignore[attr-defined]
    return nbytes(stored), lambda x: linear.multiply_tiles(x, matrix, tile)


def inputs_in_int8(out: int, width: int) -> tuple[int, Product]:
    """The weight in int8, and inputs rounded to int8 as they come."""
    from spqlm.kernels.triton import int8_product

    stored = coded(out, width, "int8")
    codes, scale = stored.tensors().values()
    return nbytes(stored), lambda x: int8_product(x, codes, scale, None)


def written_out(out: int, width: int, kind: str) -> tuple[int, Product]:
    from spqlm.kernels.triton import linear
    from spqlm.kernels.triton.matrix import matrix_of

    stored = coded(out, width, kind)
    matrix = matrix_of(stored, None)
    assert matrix is not None
    return nbytes(stored), lambda x: functional.linear(x, linear.dequantized(matrix, x.dtype))


def low_rank(out: int, width: int) -> tuple[int, Product]:
    """Both factors in int8, at the rank that halves the number of weights."""
    from spqlm.kernels.triton import low_rank as product

    rank = out * width // (out + width) // 2 // 32 * 32
    right, left = coded(rank, width, "int8"), coded(out, rank, "int8")
    return nbytes(right) + nbytes(left), lambda x: product(x, right, left, None)


def group_sparse(out: int, width: int, share: Tensor | float = 0.5) -> tuple[int, "Stored"]:
    """4 bits, that share of the groups kept."""
    from spqlm.kernels.triton.sparse_linear import group_numbers, stored_of

    keep = torch.rand(out, width // SPARSE_GROUP, device=DEVICE) < share
    codes = torch.randint(-8, 8, (out, width), dtype=torch.int8, device=DEVICE)
    weight = pack(codes, random_scale(*keep.shape), None, keep, bits=4)
    stored = stored_of(weight, None)
    assert stored is not None
    group_numbers(stored.mask, stored.groups)  # Which cannot be made while a graph is captured.
    return nbytes(weight), stored


def groups_read(out: int, width: int) -> tuple[int, Product]:
    from spqlm.kernels.triton import sparse_linear

    size, stored = group_sparse(out, width)
    return size, lambda x: sparse_linear.read_codes(x, stored)


def uneven_groups_read(out: int, width: int) -> tuple[int, Product]:
    """A tenth of the groups kept in the first row, nine tenths in the last."""
    from spqlm.kernels.triton import sparse_linear

    share = torch.linspace(0.1, 0.9, out, device=DEVICE)[:, None]
    size, stored = group_sparse(out, width, share)
    return size, lambda x: sparse_linear.read_codes(x, stored)


def groups_written_out(out: int, width: int) -> tuple[int, Product]:
    from spqlm.kernels.triton import sparse_linear

    size, stored = group_sparse(out, width)
    return size, lambda x: functional.linear(x, sparse_linear.dequantized(stored, x.dtype))


def two_of_four(out: int, width: int) -> tuple[int, Product]:
    """bfloat16 with two of four weights kept; at least 16 rows of input are given to it."""
    kept = torch.tensor([1, 1, 0, 0], device=DEVICE).repeat(out, width // 4)
    weight = torch.randn(out, width, device=DEVICE, dtype=torch.bfloat16) * kept
    sparse = torch.sparse.to_sparse_semi_structured(weight)

    def product(x: Tensor) -> Tensor:
        padded = functional.pad(x, (0, 0, 0, max(0, 16 - len(x))))
        return functional.linear(padded, sparse)

    return weight.nbytes * 9 // 16, product


def exllama(out: int, width: int) -> tuple[int, Product]:
    operations = torch.ops.gptqmodel_exllamav2
    stored = torch.randint(0, 2**31, (width // 8, out), dtype=torch.int32, device=DEVICE)
    zeros = torch.full((width // GROUP, out // 8), 0x77777777, dtype=torch.int32, device=DEVICE)
    scale = random_scale(width // GROUP, out).half()
    room = torch.empty(out * width + 128, dtype=torch.float16, device=DEVICE)
    given = (None,) * 5
    handle = operations.make_q_matrix(stored, *given, zeros, scale, None, room)

    def product(x: Tensor) -> Tensor:
        x = x.half()
        y = x.new_empty(len(x), out)
        operations.gemm_half_q_half(x, handle, y, False)
        return y

    product.held = (stored, zeros, scale, room)  # type: ignore[attr-defined]
    return stored.nbytes + scale.nbytes, product


def torchao(out: int, width: int, bits: int) -> tuple[int, Product]:
    from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

    layer = nn.Linear(width, out, bias=False, dtype=torch.bfloat16, device=DEVICE)
    config = Int8WeightOnlyConfig()
    if bits == 4:
        config = Int4WeightOnlyConfig(GROUP, int4_packing_format="tile_packed_to_4d")
    quantize_(layer, config)
    scales = out if bits == 8 else out * width // GROUP
    return out * width * bits // 8 + 2 * scales, layer


DENSE = "dense, PyTorch"
WAYS: dict[str, Callable[[int, int], tuple[int, Product]]] = {
    DENSE: dense,
    **{kind: partial(as_dispatched, kind=kind) for kind in CODED},
    **{
        f"{kind}, tile {number}": partial(in_tiles, kind=kind, number=number)
        for kind in TILED
        for number in range(3)
    },
    **{f"{kind}, written out": partial(written_out, kind=kind) for kind in CODED},
    "int8 by int8": inputs_in_int8,
    "int8 factors": low_rank,
    "half of int4's groups": groups_read,
    "half of them, uneven rows": uneven_groups_read,
    "half of them, written out": groups_written_out,
    "2:4 in bfloat16, PyTorch": two_of_four,
    "int8, torchao": lambda out, width: torchao(out, width, 8),
    "int4, torchao": lambda out, width: torchao(out, width, 4),
    "int4, ExLlamaV2": exllama,
}


def nbytes(weight: StoredWeight) -> int:
    return sum(tensor.nbytes for tensor in weight.tensors().values())


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


def bandwidth() -> float:
    """Bytes per second that the GPU's memory is built for."""
    found = torch.cuda.get_device_properties()
    return 2 * found.memory_clock_rate * 1e3 * found.memory_bus_width / 8


def suits(name: str, count: int) -> bool:
    """Whether a way is meant for so many rows of input."""
    if ", tile " in name:
        return count > 64
    return not (WAYS[name] in (groups_read, uneven_groups_read) and count > 16)


def compare(
    shape: tuple[int, int], count: int, repeats: int, names: Iterable[str]
) -> list[dict[str, object]]:
    x = torch.randn(count, shape[1], device=DEVICE, dtype=torch.bfloat16)
    graphs, rows = {}, []
    for name in names:
        if not suits(name, count):
            continue
        make = WAYS[name]
        try:
            graphs[name] = captured(make, shape, x)
        except (ImportError, LookupError, RuntimeError, ValueError, AttributeError) as error:
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
            "share_of_bandwidth": size / median[name] * 1e3 / bandwidth(),
            "ratio_to_dense": median[DENSE] / median[name],
        }
        for name, (size, _, _) in graphs.items()
    ]
    return [{"shape": f"{shape[0]}x{shape[1]}", "rows": count, **row} for row in rows]


def compile_exllama(source: Path) -> None:
    """Make `torch.ops.gptqmodel_exllamav2`."""
    from torch.utils.cpp_extension import load

    names = ("ext_gptq.cpp", "cuda/q_matrix.cu", "cuda/q_gemm.cu")
    load(
        "gptqmodel_exllamav2",
        [str(source / name) for name in names],
        extra_include_paths=[str(source)],
        extra_cuda_cflags=["-U__CUDA_NO_HALF_OPERATORS__", "-U__CUDA_NO_HALF_CONVERSIONS__"],
        is_python_module=False,
    )


def show(row: dict[str, object]) -> str:
    if "not_measured" in row:
        return f"  {row['way']:26s} not measured: {row['not_measured']}"
    return (
        f"  {row['way']:26s} {row['microseconds']:8.1f} µs {row['gigabytes_per_second']:7.0f} GB/s "
        f"{row['share_of_bandwidth']:5.0%} of the memory's {row['ratio_to_dense']:6.2f}x dense"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", action="append", help="OUTxIN; may be given several times")
    parser.add_argument("--rows", type=int, action="append", help=f"of input; default {COUNTS}")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY")
    parser.add_argument("--exllama", type=Path, help="folder of its source")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the figures go")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit(
            "benchmarks/cuda_kernels.py needs a CUDA GPU, and torch sees none on this machine."
        )
    import triton

    if arguments.exllama:
        compile_exllama(arguments.exllama)
    record: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "results": [],
    }
    arguments.json.parent.mkdir(exist_ok=True)
    for text in arguments.shape or SHAPES:
        out, width = (int(side) for side in text.split("x"))
        for count in arguments.rows or COUNTS:
            print(f"\n{text}, {count} rows of bfloat16")
            names = dict.fromkeys((DENSE, *arguments.ways))  # Others are compared with it.
            rows = compare((out, width), count, arguments.repeats, names)
            print("\n".join(show(row) for row in rows), flush=True)
            record["results"] += rows
            arguments.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
