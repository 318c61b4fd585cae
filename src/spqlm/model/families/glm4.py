"""GLM-4: Llama's attention, gate and up in one projection."""

from spqlm.model.families.base import Family

FAMILY = Family(prunes=("attention",), whole="gate and up are rows of one projection")
