"""Attention of prompts beside PyTorch's, from what benchmarks/attention.py measures."""

from benchmarks.tables.markdown import table


def section(stored: dict) -> str:
    heads = [
        (
            row["heads_of"],
            f"{row['sequences']} x {row['tokens']}" + (", padded" if row["padded"] else ""),
            f"{row['query_heads']} / {row['key_heads']} x {row['width']}",
            *_times(row),
        )
        for row in stored["kernel"]
    ]
    prompts = [(f"{row['sequences']} x {row['tokens']}", *_times(row)) for row in stored["model"]]
    times = (
        *("native, ms", "PyTorch, ms", "times as fast"),
        *("with gradients, ms", "PyTorch, ms", "times as fast"),
    )
    return f"""## Attention of prompts

Machine: {stored["machine"]}. Command: `python benchmarks/attention.py`. Medians of runs in turn.

One layer, bfloat16; query heads / key heads x width:

{table(("heads of", "prompt", "heads", *times), heads)}

A prompt through all of SmolLM2-135M in bfloat16, optimised, with either (batches are padded); with
gradients, those of the last logits at the embeddings:

{table(("prompt", *times), prompts)}
"""


def _times(row: dict) -> tuple[str, ...]:
    return *_beside(row, ""), *_beside(row, "trained_")


def _beside(row: dict, kind: str) -> tuple[str, str, str]:
    if f"{kind}native" not in row:
        return "", "", ""
    native, pytorch = row[f"{kind}native"], row[f"{kind}pytorch"]
    return f"{native:.2f}", f"{pytorch:.2f}", f"{pytorch / native:.2f}"
