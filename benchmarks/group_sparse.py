"""Group-sparse 4-bit weights: what leaving groups out gains, and where it gains nothing.

    python benchmarks/group_sparse.py

Times one product of each kernel as the native decode step calls it, beside PyTorch's own: for a
vector, for several inputs, from little to much left out, and for rows that keep very different
numbers of groups. Activations are bfloat16, groups of the sparse weight 16 inputs, of the dense
4-bit weights 128. Timings are medians, and the best, of runs that alternate between the ways
compared; each way goes through several copies of its weight, 256 MiB or more together, so that all
reads come from memory. Prints tables and writes benchmarks/results/group_sparse.json.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from cpu_kernels import StoredWeights, Weights, int4, int8, read_bandwidth, timed
from torch import Tensor
from torch.nn import functional

from spqlm import native
from spqlm.evaluation.machine import processor
from spqlm.formats import StoredWeight
from spqlm.formats.group_sparse import GroupSparse
from spqlm.kernels.weights import Schedule, sparse_linear
from spqlm.numerics.group_sparse import offsets_of, pack_mask

RESULTS = Path(__file__).parent / "results" / "group_sparse.json"
SHAPES = ((4096, 4096), (11008, 4096), (4096, 11008))
GROUP, DENSE_GROUP = 16, 128
DTYPE = torch.bfloat16
Row = dict[str, object]


def packed(keep: Tensor) -> StoredWeight:
    """Random codes and scales in the groups of `keep`, made in stored form."""
    kept = int(keep.sum())
    tensors = {
        "codes": torch.randint(0, 256, (kept, GROUP // 2), dtype=torch.uint8),
        "scale": (torch.rand(kept) / 64 + 0.01).to(DTYPE),
        "mask": pack_mask(keep),
        "offsets": offsets_of(keep),
    }
    return GroupSparse(group_size=GROUP, kept=kept).hold(tensors, keep.shape[1] * GROUP)


def random_mask(rows: int, columns: int, sparsity: float) -> Tensor:
    return torch.rand(rows, columns // GROUP) >= sparsity


def torch_int4(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    codes = torch.randint(0, 16, (rows, columns), dtype=torch.int32)
    scales = torch.randn(columns // DENSE_GROUP, rows, 2).to(DTYPE)
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1), scales


Way = tuple[Weights, Callable[[Tensor], object]]


def native_way(weight: StoredWeight) -> Way:
    library, weights = native.library(), StoredWeights(weight)
    assert library is not None
    return weights, lambda x: native.linear(library, x, weights.matrix())


def sparse_way(keep: Tensor) -> Way:
    return native_way(packed(keep))


def int4_way(rows: int, columns: int) -> Way:
    return native_way(int4(rows, columns, DTYPE, DENSE_GROUP))


def torch_int4_way(rows: int, columns: int) -> Way:
    weights = Weights(lambda: torch_int4(rows, columns))

    def product(x: Tensor) -> Tensor:
        codes, scales = weights.next()
        return torch.ops.aten._weight_int4pack_mm_for_cpu(x, codes, DENSE_GROUP, scales)

    return weights, product


def others(rows: int, columns: int) -> dict[str, Way]:
    eight = StoredWeights(int8(rows, columns, DTYPE))
    dense = Weights(lambda: (torch.randn(rows, columns).to(DTYPE),))
    return {
        "int4 g128": int4_way(rows, columns),
        "int4 g128, PyTorch": torch_int4_way(rows, columns),
        "int8, PyTorch": (eight, lambda x: torch.ops.aten._weight_int8pack_mm(x, *eight.next())),
        "bfloat16, PyTorch": (dense, lambda x: functional.linear(x, *dense.next())),
    }


def measure(
    ways: dict[str, Way], x: Tensor, repeats: int, first: str, **about: object
) -> list[Row]:
    """One row for each way; `times` is its time over that of the way `first`."""
    runs = {name: (lambda way=way: way(x)) for name, (_, way) in ways.items()}
    taken = timed(runs, repeats)
    return [
        {
            **about,
            "way": name,
            "microseconds": taken[name][0] * 1e6,
            "gigabytes_per_second": weights.bytes / taken[name][0] / 1e9,
            "times": taken[name][0] / taken[first][0],
            "best_microseconds": taken[name][1] * 1e6,
            "best_gigabytes_per_second": weights.bytes / taken[name][1] / 1e9,
            "best_times": taken[name][1] / taken[first][1],
        }
        for name, (weights, _) in ways.items()
    ]


def inputs(count: int, columns: int) -> Tensor:
    return torch.randn(count, columns).to(DTYPE)


def vectors(threads: tuple[int, ...], repeats: int) -> list[Row]:
    found = []
    for rows, columns in SHAPES:
        ways = {"S50": sparse_way(random_mask(rows, columns, 0.5))} | others(rows, columns)
        for count in threads:
            torch.set_num_threads(count)
            about = {"shape": f"{rows}x{columns}", "threads": count}
            found += measure(ways, inputs(1, columns), repeats, "S50", **about)
    return found


def sparsities_and_batches(repeats: int) -> tuple[list[Row], list[Row]]:
    rows, columns = SHAPES[0]
    dense = {
        "int4 g128": int4_way(rows, columns),
        "int4 g128, PyTorch": torch_int4_way(rows, columns),
    }
    by_sparsity, by_batch = [], []
    sparse_ways = {
        f"S{10 * tenth}": sparse_way(random_mask(rows, columns, tenth / 10))
        for tenth in range(1, 10)
    }
    by_sparsity = measure(dense | sparse_ways, inputs(1, columns), repeats, "int4 g128")
    chosen = {name: sparse_ways[name] for name in ("S20", "S30", "S50", "S70")}
    for count in (1, 2, 4, 8, 16):
        x = inputs(count, columns)
        by_batch += measure(dense | chosen, x, repeats // 2, "int4 g128", inputs=count)
    return by_sparsity, by_batch


def kept_in_few_rows(rows: int, groups: int) -> Tensor:
    """All groups in every eighth of the first rows."""
    return (torch.arange(rows) < rows // 8)[:, None].expand(rows, groups).contiguous()


def kept_like_zipf(rows: int, groups: int) -> Tensor:
    """The i-th row keeps a share that falls with 1 / i^0.5, first rows first."""
    share = (torch.arange(1, rows + 1) / 64).rsqrt().clamp(max=1)
    return torch.rand(rows, groups) < share[:, None]


def scheduled_way(weights: StoredWeights, schedule: Schedule) -> Way:
    library = native.library()
    assert library is not None
    return weights, lambda x: sparse_linear(library, x, weights.matrix(), schedule)


def uneven(repeats: int) -> list[Row]:
    """Kept groups split evenly over tasks, against rows split evenly over as many tasks."""
    rows, columns = SHAPES[0]
    groups = columns // GROUP
    found = []
    for name, keep in {
        "alike": random_mask(rows, columns, 0.5),
        "Zipf": kept_like_zipf(rows, groups),
        "one eighth of the rows": kept_in_few_rows(rows, groups),
        "one row in 16 x 1048576": (torch.arange(16) == 7)[:, None].expand(16, 65536).contiguous(),
    }.items():
        weights = StoredWeights(packed(keep))
        ways = {
            "by groups": scheduled_way(weights, Schedule.EVEN_GROUPS),
            "by rows": scheduled_way(weights, Schedule.EVEN_ROWS),
        }
        x = inputs(1, keep.shape[1] * GROUP)
        found += measure(ways, x, repeats, "by groups", kept=name)
    return found


def show(title: str, rows: list[Row], bandwidth: float) -> None:
    print(f"\n{title}")
    for row in rows:
        named = [str(value) for value in row.values() if not isinstance(value, float)]
        columns = [f"{'  '.join(f'{name:>12s}' for name in named):60s}"]
        for kind in ("", "best_"):
            speed = float(str(row[f"{kind}gigabytes_per_second"]))
            columns.append(
                f"{row[f'{kind}microseconds']:7.0f} us {speed:5.1f} GB/s "
                f"({speed * 1e9 / bandwidth:4.0%}) {row[f'{kind}times']:5.2f}x"
            )
        print("  " + "  ".join(columns))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=41)
    arguments = parser.parse_args()
    library = native.library()
    if library is None:
        raise SystemExit("there is nothing to measure without the native library")
    threads, repeats = arguments.threads, arguments.repeats
    torch.set_num_threads(threads)
    bandwidth = read_bandwidth()
    kernels = native.instruction_set(library)
    print(f"kernels: {kernels}; threads: {threads}; reads {bandwidth / 1e9:.1f} GB/s")
    tables = {"vectors": vectors((threads, 1) if threads > 1 else (1,), repeats)}
    show("One vector; times: what the others take of S50's time", tables["vectors"], bandwidth)
    torch.set_num_threads(threads)
    tables["sparsities"], tables["batches"] = sparsities_and_batches(repeats)
    show("4096x4096, one vector; times: of dense int4", tables["sparsities"], bandwidth)
    show("4096x4096, several inputs; times: of dense int4", tables["batches"], bandwidth)
    tables["uneven"] = uneven(repeats)
    show("Rows that keep different numbers of groups", tables["uneven"], bandwidth)
    RESULTS.parent.mkdir(exist_ok=True)
    machine = {"processor": processor(), "torch": torch.__version__}
    about = {"kernels": kernels, "threads": threads, "read_bandwidth": bandwidth}
    RESULTS.write_text(json.dumps({**machine, **about, **tables}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
