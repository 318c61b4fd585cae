"""Speed of the kernels, from what benchmarks/cpu_kernels.py measures."""

from benchmarks.tables.markdown import table


def section(stored: dict) -> str:
    header = ("weight", "rows", "way", "ms", "GB/s", "against dense")
    return f"""## Kernels

Machine: {stored["processor"]}, {stored["threads"]} threads; torch {stored["torch"]}; kernels {stored["kernels"]}; reads
{stored["read_bandwidth"] / 1e9:.1f} GB/s. Command: `python benchmarks/cpu_kernels.py`. Medians of runs in turn; what runs when: [kernels.md](kernels.md).

{table(header, [_row(row) for row in stored["results"]])}
"""


def _row(row: dict) -> list[str]:
    return [
        row["shape"],
        f"{row['rows']} {row['dtype']}",
        row["way"],
        f"{row['milliseconds']:.2f}",
        f"{row['gigabytes_per_second']:.1f}",
        f"{row['ratio_to_dense']:.2f}×",
    ]
