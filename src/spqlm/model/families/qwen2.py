"""Qwen2 and Qwen2.5: Llama's layout with biases on the query, key and value projections."""

from spqlm.model.families.base import Family

FAMILY = Family(native=True)
