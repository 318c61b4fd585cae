"""Phi-3 and Phi-4: queries, keys and values in one projection, gate and up in another."""

from spqlm.model.families.base import Family

FAMILY = Family(
    prunes=(), whole="queries, keys and values are rows of one projection, and so are gate and up"
)
