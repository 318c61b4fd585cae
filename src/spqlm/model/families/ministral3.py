"""Ministral 3: Llama's layout, queries scaled by their position."""

from spqlm.model.families.base import Family

FAMILY = Family()
