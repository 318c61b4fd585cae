"""docs/results.md with its charts and README's headline table, from what the benchmarks stored as JSON.

A section whose JSON is not there is left out; each names the machine that it was measured on.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.tables import (
    attention,
    budgets,
    comparison,
    constraints,
    elsewhere,
    gguf_sizes,
    group_sparse,
    kernels,
    recipes,
    scaling,
    sparsity,
    speed,
    widths,
)
from benchmarks.tables.headline import headline

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
START, END = "<!-- headline -->\n", "<!-- /headline -->\n"

# By stored file, in the order of the page.
SECTIONS: dict[str, Callable[[Any], str]] = {
    "compress.json": recipes.quality_section,
    "sizes.json": budgets.section,
    "scaling.json": scaling.section,
    "sparsity.json": sparsity.section,
    "comparison.json": comparison.section,
    "elsewhere.json": elsewhere.section,
    "constraints.json": constraints.section,
    "gguf_sizes.json": gguf_sizes.section,
    "speed.json": speed.section,
    "speed_7b.json": speed.wide_section,
    "speed_7b_all_layers.json": speed.whole_section,
    "kernels.json": kernels.section,
    "widths.json": widths.section,
    "attention.json": attention.section,
    "group_sparse.json": group_sparse.section,
}
# Tables that benchmarks/peers/ writes beside its JSON.
PEERS = {
    "peers_speed.md": "Speed of other engines",
    "peers_speed_llama-2-7b.md": "Speed of other engines in the shape of LLaMA-2-7B",
    "peers_quality.md": "Quality of other tools",
}


def documents(results: Path = RESULTS, root: Path = ROOT) -> dict[Path, str]:
    """What the files are to hold.

    Args:
        results: directory of the stored JSON.
        root: of the repository; its README is read.

    Returns:
        text by file. README is among them only where its figures are stored.
    """
    stored = {file.name: json.loads(file.read_text()) for file in sorted(results.glob("*.json"))}
    sections = [write(stored[name]) for name, write in SECTIONS.items() if name in stored]
    sections += [
        f"## {title}\n\n{(results / name).read_text()}"
        for name, title in PEERS.items()
        if (results / name).is_file()
    ]
    if "compress.json" in stored:
        sections.append(recipes.cost_section(stored["compress.json"]))
    written = {root / "docs" / "results.md": "\n\n".join(map(str.strip, [HEAD, *sections])) + "\n"}
    if "comparison.json" in stored:
        drawn = comparison.charts(stored["comparison.json"])
        written |= {root / "docs" / name: chart for name, chart in drawn.items()}
    if "compress.json" in stored:
        readme = root / "README.md"
        before, rest = readme.read_text(encoding="utf-8").split(START, 1)
        _, after = rest.split(END, 1)
        recipe_cells = stored["compress.json"]["quality"]
        table = headline(
            recipe_cells,
            *(stored.get(f"{name}.json") for name in ("sizes", "speed", "gguf_sizes")),
        )
        written[readme] = f"{before}{START}{table}{END}{after}"
    return written


HEAD = """# Results

Written by `make results` from the JSON in `benchmarks/results/`, which the scripts in `benchmarks/`,
`spq compare` and `spq bench --output` measure. Sections or rows name their machine; an AMD EPYC without
instructions in brackets is a Zen 4 with AVX-512 BF16, the Intel Xeon has AMX, too."""
