"""Figures as JSON, and their table as Markdown beside it."""

import json
from pathlib import Path


def write_results(file: Path, stored: dict, table: str) -> None:
    """Write FILE and its .md, each whole or not at all."""
    file.parent.mkdir(exist_ok=True)
    texts = {file: json.dumps(stored, indent=1) + "\n", file.with_suffix(".md"): table}
    for path, text in texts.items():
        partial = path.with_name(path.name + ".partial")
        partial.write_text(text)
        partial.replace(path)
