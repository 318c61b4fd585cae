"""Checkpoints of ours in other programs, from what benchmarks/elsewhere.py measures."""

from benchmarks.tables.markdown import lettered, megabytes, table


def section(stored: dict) -> str:
    rows = stored["rows"]
    programs = list(dict.fromkeys(row["program"] for row in rows))
    found = {(row["checkpoint"], row["program"]): row for row in rows}
    cells = [
        [name, *(_cell(found.get((name, program))) for program in programs)]
        for name in dict.fromkeys(row["checkpoint"] for row in rows)
    ]
    reasons = dict.fromkeys(
        f"- {row['checkpoint']}, {row['program']}: {row[kind]}"
        for kind in ("as_floats", "failed")
        for row in rows
        if kind in row
    )
    versions = ", ".join(dict.fromkeys(row["version"] for row in rows if "version" in row))
    machines, _ = lettered(rows)
    return f"""## In other programs

Command: `python benchmarks/elsewhere.py`. SmolLM2-135M-Instruct (`demo`), checkpoints without training, 48 tokens of the
built-in text. Each cell has the MB that the program reads, the KL divergence of its predictions from ours in float32, and
how many of 24 greedy tokens agree. A star: what the program cannot hold was exported with `--as-floats`.
An empty cell was not tried.

bfloat16 against float32 is 1e-3 to 3e-3 by itself. llama.cpp rounds activations to 8 bits. MLX computes in float32 here:
on a CPU it sums products of quantised weights in the dtype of the file.

{table(("checkpoint", *programs), cells)}

Versions: {versions}.

{chr(10).join(reasons)}

{machines}
"""


def _cell(row: dict | None) -> str:
    if row is None:
        return ""
    if "failed" in row:
        return "does not load"
    star = " \\*" if "as_floats" in row else ""
    # Below the rounding of its own sum.
    divergence = "below 1e-6" if row["kl"] < 1e-6 else f"{row['kl']:.1e}"
    return f"{megabytes(row['bytes'])}{star}; {divergence}; {row['greedy']}"
