"""Group sparsity, from what benchmarks/sparsity.py measures."""

import math

from benchmarks.tables.markdown import lettered, table


def section(stored: dict) -> str:
    dense = {task: math.exp(nll) for task, nll in stored["dense"].items()}
    header = (
        "variant",
        "calibration",
        "bits per weight",
        "Δ WikiText-2",
        "Δ C4",
        "time",
        "machine",
    )
    machines, letters = lettered(stored["rows"])
    rows = [_row(row, letter) for row, letter in zip(stored["rows"], letters, strict=True)]
    return f"""## Group sparsity

Command: `SPQ_DATA_DIR=... python benchmarks/sparsity.py`.

SmolLM2-135M-Instruct, attention and MLP weights only; "bits" counts everything stored for them. Δ is
ln(perplexity / dense perplexity) over the first 20 windows of 1,024 tokens of WikiText-2 (raw, test)
and of a C4 sample, float32; dense: {dense["wikitext2"]:.2f} and {dense["c4"]:.2f}. Peers are our own
implementations of their papers. {stored.get("note", "")}

{table(header, rows)}

{machines}
"""


def _row(row: dict, letter: str) -> list[str]:
    return [
        row["name"],
        row["calibration"],
        f"{row['bits']:.2f}",
        f"{row['wikitext2']:.4f}",
        f"{row['c4']:.4f}",
        f"{row['seconds']:.0f} s",
        letter,
    ]
