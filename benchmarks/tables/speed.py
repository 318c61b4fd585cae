"""Speed of whole models, from `spq bench --output`."""

from benchmarks.tables.markdown import table

from spqlm.evaluation.speed import Comparison
from spqlm.report.speed import RATES, notes, rows


def section(stored: dict) -> str:
    return f"""## Speed

SmolLM2-135M-Instruct: dense, in int8, where named by their sizes pruned and factorised with int8 and at
`--target-size`, and in int4 (groups of 64, embedding int8). Written by `spq bench --output`
([what is timed](benchmarks.md)). {_measured(stored)}
"""


def wide_section(stored: dict) -> str:
    return f"""## Speed in the shape of LLaMA-2-7B

Random weights, 8 of the 32 layers (`benchmarks/random_model.py --layers 8`), so that all formats lie
in memory together. `pruned-int8`, where it is there, has three quarters of the neurons, attention in
two factors of a quarter of its rank, and both in int8.
{_measured(stored)}
"""


def whole_section(stored: dict) -> str:
    return f"""## Speed in the shape of LLaMA-2-7B, all layers

Random weights, all of the 32 layers (`benchmarks/random_model.py --formats bfloat16 int8 int4`); two rounds
of few tokens, models loaded anew in each (`spq bench --one-at-a-time`), from a disk whose cache holds the
largest model alone, so the first token includes reading weights.
{_measured(stored)}
"""


def _measured(stored: dict) -> str:
    found = Comparison.model_validate(stored)
    header, rates, costs = rows(found)
    lines = "\n".join(notes(found))
    return f"""Cells: {RATES}.

{table(header, rates + costs)}

{lines}"""
