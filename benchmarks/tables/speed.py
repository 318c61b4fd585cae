"""Speed of whole models, from `spq bench --json`."""

from benchmarks.tables.markdown import table

from spq.evaluation.speed import Comparison
from spq.report.speed import RATES, notes, rows


def section(stored: dict) -> str:
    found = Comparison.model_validate(stored)
    header, rates, costs = rows(found)
    lines = "\n".join(notes(found))
    return f"""## Speed

Written by `spq bench --json` ([what is timed](benchmarks.md)). Cells: {RATES}.

{table(header, rates + costs)}

{lines}
"""
