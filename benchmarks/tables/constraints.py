"""What keeping to another program costs, from what benchmarks/constraints.py stores."""

from benchmarks.tables.markdown import table

FREE = "none"


def section(stored: dict) -> str:
    rows = stored["rows"]
    sizes = [point["target"] for point in rows[0]["points"]]
    free = next((row for row in rows if row["for"] == FREE), None)
    cells = []
    for row in rows:
        name = "nothing" if row["for"] == FREE else f"`--for {row['for']}`"
        cells.append([name, *(_cell(row, free, size) for size in sizes)])
    quick = rows[0].get("quick", False)
    recipe = (
        "recipe `default` in a quarter of its time (`--quick`)" if quick else "recipe `default`"
    )
    header = ("keeping to", *(f"{size / 1e6:g} MB" for size in sizes))
    return f"""## What keeping to another program costs

Command: `python benchmarks/constraints.py`. SmolLM2-135M-Instruct (`demo`), {recipe}, calibrated on
{rows[0]["calibration_windows"]} windows of 512 tokens of `{rows[0]["calibration"]}`. Predicted loss in nats per token before any training, and what it is above that of our own
checkpoint of the same bytes. Bytes are those of the files that the program reads.

{table(header, cells)}

GGUF's own types are offered with `--for gguf` alone, and one of them, Q4_1, is the grid that the weights of `demo` were
stored on. That flatters it here and says nothing of other models. compressed-tensors has no integers in embeddings.
"""


def _cell(row: dict, free: dict | None, size: int) -> str:
    found = _predicted(row, size)
    if found is None:
        return "out of reach"
    other = None if free is None or row is free else _predicted(free, size)
    return f"{found:.4f}" if other is None else f"{found:.4f} ({found - other:+.4f})"


def _predicted(row: dict, size: int) -> float | None:
    return next((p["predicted"] for p in row["points"] if p["target"] == size), None)
