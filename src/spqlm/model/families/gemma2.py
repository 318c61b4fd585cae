"""Gemma 2: Llama's layout with a scaled, tied embedding, capped logits and more norms."""

from spqlm.model.families.base import Family

FAMILY = Family()
