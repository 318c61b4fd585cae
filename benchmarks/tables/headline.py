"""README's table: size, perplexity and decoding speed of what a user would choose between."""

import math
from collections.abc import Sequence

from benchmarks.tables.markdown import megabytes, table

# Rows of benchmarks/compress.py, before and after those of byte budgets.
BEFORE, AFTER = ("dense", "int8"), ("paper",)
CALIBRATION = "wikitext2_valid"
# Of benchmarks/gguf_sizes.py.
LARGER_MODEL = "Qwen2.5-Coder-1.5B-Instruct"
PEER, OURS = "llama.cpp, importance matrix", "spq, GPTQ alone, own formats"
# Of the table; the smallest budgets are left to docs/results.md.
MOST_ROWS = 8


def headline(
    recipes: dict, sizes: dict | None, speed: dict | None, files: dict | None = None
) -> str:
    """The table, with a sentence before it, and one beside llama.cpp's quantiser.

    Args:
        recipes: cells of benchmarks/compress.py, by recipe.
        sizes: what benchmarks/sizes.py stored, if it was run.
        speed: what `spq bench --output` stored, if it was run, models named as the rows are here.
        files: what benchmarks/gguf_sizes.py stored, if it was run.
    """
    rates = _decoding(speed) if speed else {}
    rows = [_recipe(name, recipes[name]) for name in BEFORE]
    budgets = _budgets(sizes) if sizes else []
    rows += budgets[: MOST_ROWS - len(BEFORE) - len(AFTER)]
    rows += [_recipe(name, recipes[name]) for name in AFTER]
    header = ["", "MB on disk", "WikiText-2", "C4"]
    if rates:
        header.append("decoding, tokens/s")
        rows = [[*row, rates.get(row[0].removeprefix("--target-size "), "")] for row in rows]
    rows = [[f"`{row[0]}`" if row[0].startswith("--") else row[0], *row[1:]] for row in rows]
    threads = ""
    if speed:
        threads = f".\nDecoding at batch 1 on {speed['threads']} threads with `optimize=True`"
    return (
        "SmolLM2-135M-Instruct: perplexity on 20 windows of 1,024 tokens. Calibrated on WikiText-2 "
        f"validation text,\nnot distilled (`paper` includes its recovery){threads}.\n\n"
        f"{table(header, rows)}\n{_larger(files) if files else ''}"
    )


def _larger(files: dict) -> str:
    """A model of 1.5B parameters at the bytes of llama.cpp's files; nothing before it was run."""
    found = {(row["kind"], row["by"]): row for row in files["rows"] if row["model"] == LARGER_MODEL}
    rows = [
        [megabytes(ours["bytes"]), kind.upper(), *(f"{r['divergence']:.3f}" for r in (peer, ours))]
        for (kind, by), ours in sorted(found.items(), key=lambda item: -item[1]["bytes"])
        if by == OURS and (peer := found.get((kind, PEER)))
    ]
    if not rows:
        return ""
    header = ("MB", "llama.cpp's type", "KL, llama.cpp with importance matrix", "KL, ours")
    return (
        f"\n{LARGER_MODEL}: KL divergence from the dense model on 8 windows of WikiText-2, at the "
        "bytes of llama.cpp's files. llama.cpp\nscored all of them. Ours is the recipe `quick`, "
        f"in formats that GGUF lacks.\n\n{table(header, rows)}\n"
    )


def _recipe(name: str, cell: dict) -> Sequence[str]:
    scores = cell["scores"]
    found = [f"{scores[task]['perplexity']:.2f}" for task in ("wikitext2", "c4")]
    return [name, megabytes(cell["disk"]), *found]


def _budgets(sizes: dict) -> list[Sequence[str]]:
    dense = sizes["dense"]
    return [
        [
            f"--target-size {row['target']:g}MB",
            megabytes(row["disk"]),
            *(f"{math.exp(dense[task] + row['delta'][task]):.2f}" for task in ("wikitext2", "c4")),
        ]
        for row in sizes["rows"]
        if row["label"] == "default"
        and row["calibration"] == CALIBRATION
        and not row["recovered"]
        # int8 is a row of its own.
        and set(row["codes"]) != {"int8"}
    ]


def _decoding(speed: dict) -> dict[str, str]:
    """Tokens per second by model: the first also as transformers runs it, all optimised."""
    first = speed["models"][0]["name"]
    shown = {}
    for model in speed["models"]:
        for found in model["rates"]:
            if found["measure"]["kind"] != "decode" or found["measure"]["batch"] != 1:
                continue
            name, rate = model["name"], found["rate"]["median"]
            if model["optimize"]:
                before = f"{shown[name]}; " if name == first else ""
                shown[name] = f"{before}{rate:.0f} ({found['ratio']:.1f}×)"
            elif name == first:
                shown[name] = f"plain transformers {rate:.0f}"
    return shown
