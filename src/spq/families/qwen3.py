"""Qwen3: Llama's layout with per-head norms on queries and keys."""

from spq.families.base import Family

FAMILY = Family()
