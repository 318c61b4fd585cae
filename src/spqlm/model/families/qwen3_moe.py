"""Qwen3 mixtures of experts: Qwen3's attention."""

from spqlm.model.families.base import FEW_EXPERTS, Family

FAMILY = Family(
    prunes=("attention",),
    whole="experts keep their width",
    small=FEW_EXPERTS,
)
