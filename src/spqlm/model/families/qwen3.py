"""Qwen3: Llama's layout with per-head norms on queries and keys."""

from spqlm.model.families.base import Family

FAMILY = Family(native=True)
