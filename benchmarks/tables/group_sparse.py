"""Speed of group-sparse products, from what benchmarks/group_sparse.py measures."""

from benchmarks.tables.markdown import table

# Columns that say what was measured, by list in the JSON, and what times are times of.
LISTS = {
    "vectors": (("shape", "threads"), "One vector times a weight", "S50's"),
    "sparsities": ((), "4096x4096, one vector", "our dense int4's"),
    "batches": (("inputs",), "4096x4096, several inputs", "our dense int4's"),
    "uneven": (("kept",), "Rows that keep different numbers of groups", "the split by groups'"),
}


def section(stored: dict) -> str:
    tables = "\n\n".join(_table(stored, name) for name in LISTS)
    return f"""## Kernels for group-sparse weights

Machine: {stored["processor"]}, {stored["threads"]} threads; torch {stored["torch"]}; kernels
{stored["kernels"]}; reads {stored["read_bandwidth"] / 1e9:.1f} GB/s. Command:
`python benchmarks/group_sparse.py`. S50: 4-bit codes in groups of 16, half of them stored; bfloat16
inputs; weights cycle through copies that the caches cannot hold. Medians of runs in turn; "share" is
of the speed of reading.

{tables}
"""


def _table(stored: dict, name: str) -> str:
    columns, title, unit = LISTS[name]
    header = (*columns, "way", "µs", "GB/s", "share", f"times {unit}")
    rows = [
        (
            *(row[column] for column in columns),
            row["way"].strip(),
            f"{row['microseconds']:.0f}",
            f"{row['gigabytes_per_second']:.1f}",
            f"{1e9 * row['gigabytes_per_second'] / stored['read_bandwidth']:.0%}",
            f"{row['times']:.2f}×",
        )
        for row in stored[name]
    ]
    return f"{title}:\n\n{table(header, rows)}"
