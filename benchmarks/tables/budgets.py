"""Byte budgets, from what benchmarks/sizes.py measures."""

import math

from benchmarks.tables.markdown import lettered, megabytes, table


def section(stored: dict) -> str:
    dense = {task: math.exp(nll) for task, nll in stored["dense"].items()}
    machines, letters = lettered(stored["rows"])
    rows = [_row(row, letter) for row, letter in zip(stored["rows"], letters, strict=True)]
    return f"""## Byte budgets

Command: `SPQ_DATA_DIR=... python benchmarks/sizes.py` (with `--recover` for the distilled rows).

`spq compress demo out --target-size ...` on SmolLM2-135M-Instruct (bfloat16, 269.1 MB). Δ is
ln(perplexity / dense perplexity) over the first 20 windows of 1,024 tokens of WikiText-2 (raw,
test) and of the first 100 documents of a C4 sample, reloaded in float32; dense:
{dense["wikitext2"]:.2f} and {dense["c4"]:.2f}. KL is the divergence from the dense model's predictions on
WikiText-2. Sizes are all weights on disk. "Predicted" is the sum of prices, on calibration text held
out from what weights were fitted to. The first row of a
calibration pays for its gradients and prices; "load" is what ran on the machine (two busy threads are 2).

{table(HEADER, rows)}

{machines}

"Default, ..." is the recipe `default` with some settings changed (`--variants`). "A float for each
group" is `default` as it was before scales of nl2 to nl5 took eight bits; its distilled rows had a
learning rate of 3e-3, or what is said (240 steps: the recipe `thorough` of then). "0.1 with ..." is
the recipe `default` as it was when it knew 4 and 8 bits, ranks and widths; "with learned rounding"
has `reconstruction: {{steps: 100}}` in its stage `budget` (`--recipe`, `--label`). "Evenly spaced
levels only" has int2 to int5 in place of nl2 to nl5.
"""


HEADER = (
    *("target", "recipe", "calibration", "distilled", "MB on disk", "stored as"),
    *("predicted Δ", "Δ WikiText-2", "Δ C4", "KL", "time", "load", "machine"),
)


def _row(row: dict, letter: str) -> list[str]:
    return [
        f"{row['target']:g} MB",
        row["label"],
        row["calibration"],
        "yes" if row["recovered"] else "no",
        megabytes(row["disk"]),
        _stored(row),
        f"{row['predicted']:.4f}",
        f"{row['delta']['wikitext2']:.4f}",
        f"{row['delta']['c4']:.4f}",
        f"{row['divergence']['wikitext2']:.4f}" if "divergence" in row else "",
        f"{row['seconds']:.0f} s",
        f"{row['load']:.1f}",
        letter,
    ]


def _stored(row: dict) -> str:
    """How many weights have which codes; of rows of earlier versions, how many are int4."""
    codes = row.get("codes") or {"int4": row["int4"], "int8": row["weights"] - row["int4"]}
    counts = {**codes, "factorised": row["ranks"], "cut": row["cuts"]}
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)
