"""Time and memory of byte budgets by shape, from what benchmarks/scaling.py measures."""

from benchmarks.tables.markdown import lettered, megabytes, table


def section(stored: dict) -> str:
    header = ("shape", "MB dense", "MB compressed", "time", "peak memory, MB", "load", "machine")
    machines, letters = lettered(stored["rows"])
    rows = [[*_row(row), letter] for row, letter in zip(stored["rows"], letters, strict=True)]
    return f"""## Byte budgets by shape

Command: `python benchmarks/scaling.py`. Random weights in the shape of SmolLM2-135M, its embedding
included, compressed to a third of their size by the recipe `default` without distillation, gradients and
prices included; nothing was cached. Peak memory is that of the process.

{table(header, rows)}

{machines}
"""


def _row(row: dict) -> list[str]:
    return [
        row["name"],
        megabytes(row["dense_bytes"]),
        megabytes(row["disk"]),
        f"{row['seconds']:.0f} s",
        f"{row['peak_bytes'] / 1e6:.0f}",
        f"{row['load']:.1f}",
    ]
