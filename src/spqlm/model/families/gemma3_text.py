"""Gemma 3 (text): Llama's layout with a scaled, tied embedding and more norms."""

from spqlm.model.families.base import Family

FAMILY = Family()
