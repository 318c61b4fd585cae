"""Mistral: Llama's layout with sliding-window attention."""

from spq.families.base import Family

FAMILY = Family()
