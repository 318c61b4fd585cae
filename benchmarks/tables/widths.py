"""Kernels of 2 to 8 bits beside each other, from what benchmarks/cpu_widths.py measures."""

from itertools import groupby

from benchmarks.tables.markdown import table


def section(stored: dict) -> str:
    one = [row for row in stored["results"] if row["rows"] == 1]
    many = [row for row in stored["results"] if row["rows"] > 1]
    return f"""## Kernels of 2 to 8 bits

Machine: {stored["processor"]}; torch {stored["torch"]}; kernels {stored["kernels"]}; reads
{stored["read_bandwidth"] / 1e9:.1f} GB/s. Command: `python benchmarks/cpu_widths.py`. bfloat16 inputs, groups of 64; int8 by
rows; w8a8 is int8 whose inputs become int8 where there are more than 16; bfloat16 by PyTorch. Weights cycle through copies that the caches cannot hold. Medians of runs in turn.

One row of input: GB/s of the weight, and in brackets over that of int4.

{_pivot(one, "gigabytes_per_second", "rate_to_int4")}

Many rows: milliseconds of bfloat16, and the speed of the others over it.

{_speeds(many)}
"""


def _key(row: dict) -> tuple:
    return row["shape"], row["rows"], row["threads"]


def _pivot(rows: list[dict], value: str, ratio: str) -> str:
    found = [(key, list(cells)) for key, cells in groupby(rows, _key)]
    lines = [
        [
            shape,
            str(threads),
            *(f"{cell[value]:.1f} ({cell[ratio]:.2f})" for cell in cells),
        ]
        for (shape, _, threads), cells in found
    ]
    return table(("shape", "threads", *_ways(found)), lines)


def _speeds(rows: list[dict]) -> str:
    found = [(key, list(cells)) for key, cells in groupby(rows, _key)]
    lines = [
        [
            shape,
            str(count),
            str(threads),
            *(
                f"{cell['microseconds'] / 1e3:.2f} ms"
                if cell["way"] == "bfloat16"
                else f"{cell['speed_to_dense']:.2f}×"
                for cell in cells
            ),
        ]
        for (shape, count, threads), cells in found
    ]
    return table(("shape", "rows", "threads", *_ways(found)), lines)


def _ways(found: list[tuple[tuple, list[dict]]]) -> list[str]:
    return [cell["way"] for cell in found[0][1]] if found else []
