"""Granite: Llama's layout with multipliers on embeddings, attention, residuals and logits."""

from spqlm.model.families.base import Family

FAMILY = Family()
