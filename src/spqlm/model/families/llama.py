"""Llama 2 and 3, TinyLlama, SmolLM2, Vicuna: grouped-query attention, gated MLP."""

from spqlm.model.families.base import Family

FAMILY = Family(native=True)
