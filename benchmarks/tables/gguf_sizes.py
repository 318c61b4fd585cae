"""GGUF files of the same bytes, from what benchmarks/gguf_sizes.py measures."""

from benchmarks.tables.markdown import lettered, megabytes, table

# What a file was made by, as it is stored and as a column calls it.
MAKERS = {
    "llama.cpp": "llama.cpp",
    "llama.cpp, importance matrix": "llama.cpp, importance matrix",
    "spq, GPTQ alone": "`--for gguf`, GPTQ alone",
    "spq, no training": "`--for gguf --no-recover`",
    "spq": "`--for gguf`",
}


def section(stored: dict) -> str:
    rows = stored["rows"]
    makers = [maker for maker in MAKERS if any(row["by"] == maker for row in rows)]
    kinds = dict.fromkeys(row["kind"] for row in rows)
    header = ("size of", *(MAKERS[maker] for maker in makers))
    found = {(row["kind"], row["by"]): row for row in rows}
    cells = [
        [kind.upper(), *(_cell(found.get((kind, maker))) for maker in makers)]
        for kind in sorted(kinds, key=lambda kind: -_largest(rows, kind))
    ]
    machines, _ = lettered(rows)
    texts = ", ".join(
        dict.fromkeys(
            f"{row['calibration_windows']} windows of 512 tokens of `{row['calibration']}`"
            for row in rows
        )
    )
    return f"""## GGUF files of the same bytes

Command: `python benchmarks/gguf_sizes.py`. SmolLM2-135M-Instruct (`demo`). llama.cpp's quantiser makes a file of
each of its file types. Ours is given the bytes of the one with the importance matrix. The matrix and ours
have seen the same text, {texts}. llama.cpp itself scores all files on the first
{rows[0]["windows"]} windows of 1,024 tokens of WikiText-2 (raw, test), in one thread. Each cell has MB, Δ (loss above that of
the float32 file, nats per token) and the KL divergence from that file's predictions. llama.cpp rounds activations
to 8 bits, which is in all figures.

The source of `demo` is a file whose weights lie on a grid of Q4_1. Types with a shift, Q4_1 above all, get
nearly all of it back, which is not so for other models: the budget takes Q4_1 where it can.

{table(header, cells)}

{machines}
"""


def _largest(rows: list[dict], kind: str) -> int:
    return max(row["bytes"] for row in rows if row["kind"] == kind)


def _cell(row: dict | None) -> str:
    if row is None:
        return ""
    size, delta, divergence = megabytes(row["bytes"]), row["delta"], row["divergence"]
    return f"{size}; {delta:.4f}; {divergence:.4f}"
