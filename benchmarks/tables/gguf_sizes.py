"""GGUF files of the same bytes, from what benchmarks/gguf_sizes.py measures."""

from benchmarks.tables.markdown import lettered, megabytes, table

# What a file was made by, as it is stored and as a column calls it.
MAKERS = {
    "llama.cpp": "llama.cpp",
    "llama.cpp, importance matrix": "llama.cpp, importance matrix",
    "spq, GPTQ alone": "`--for gguf`, GPTQ alone",
    "spq, no training": "`--for gguf --no-recover`",
    "spq": "`--for gguf`",
    "spq, GPTQ alone, own formats": "own formats, GPTQ alone",
    "spq, no training, own formats": "own formats, `--no-recover`",
    "spq, own formats": "own formats",
}
# Their names, and what the grid of their source gives away.
MODELS = {
    "demo": (
        "SmolLM2-135M-Instruct (`demo`)",
        "Its source lies on a grid of Q4_1. Types with a shift, Q4_1 above all, get nearly all of it back, which is "
        "not so for\nother models: the budget takes Q4_1 where it can.",
    ),
    "Qwen2.5-Coder-1.5B-Instruct": (
        "Qwen2.5-Coder-1.5B-Instruct",
        "Its source lies on grids of Q4_K and Q6_K, which get it back for nothing: what counts is below them.",
    ),
}


def section(stored: dict) -> str:
    rows = stored["rows"]
    machines, _ = lettered(rows)
    models = dict.fromkeys(row["model"] for row in rows)
    tables = "\n\n".join(_of_model(model, rows) for model in models)
    return f"""## GGUF files of the same bytes

Command: `python benchmarks/gguf_sizes.py`. llama.cpp's quantiser makes a file of each of its file types. Ours is
given the bytes of the one with the importance matrix. The matrix and ours have seen the same text. llama.cpp itself
scores all files in one thread, on the first windows of 1,024 tokens of WikiText-2 (raw, test). Each cell has MB, Δ
(loss above that of the float32 file, nats per token) and the KL divergence from that file's predictions. llama.cpp
rounds activations to 8 bits, which is in all figures. Own formats are those that GGUF lacks: they are written as wider
types that hold the same numbers (Q8_0, or float32) to be scored, and the bytes are those of the checkpoint.

{tables}

{machines}
"""


def _of_model(model: str, every: list[dict]) -> str:
    """The table of one model."""
    rows = [row for row in every if row["model"] == model]
    makers = [maker for maker in MAKERS if any(row["by"] == maker for row in rows)]
    kinds = dict.fromkeys(row["kind"] for row in rows)
    found = {(row["kind"], row["by"]): row for row in rows}
    cells = [
        [kind.upper(), *(_cell(found.get((kind, maker))) for maker in makers)]
        for kind in sorted(kinds, key=lambda kind: -_largest(rows, kind))
    ]
    name, grid = MODELS[model]
    texts = ", ".join(
        dict.fromkeys(
            f"{row['calibration_windows']} windows of 512 tokens of `{row['calibration']}`"
            for row in rows
        )
    )
    return f"""{name}; calibrated on {texts}; the first {rows[0]["windows"]} windows. {grid}

{table(("size of", *(MAKERS[maker] for maker in makers)), cells)}"""


def _largest(rows: list[dict], kind: str) -> int:
    return max(row["bytes"] for row in rows if row["kind"] == kind)


def _cell(row: dict | None) -> str:
    if row is None:
        return ""
    size, delta, divergence = megabytes(row["bytes"]), row["delta"], row["divergence"]
    return f"{size}; {delta:.4f}; {divergence:.4f}"
