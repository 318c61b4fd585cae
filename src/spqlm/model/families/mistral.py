"""Mistral: Llama's layout with sliding-window attention."""

from spqlm.model.families.base import Family

FAMILY = Family(native=True)
