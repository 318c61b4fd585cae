"""Command R7B: Llama's layout, attention and MLP side by side."""

from spqlm.model.families.base import Family

FAMILY = Family()
