"""Mixtral: Mistral's attention, experts for an MLP."""

from spqlm.model.families.base import FEW_EXPERTS, Family

FAMILY = Family(
    prunes=("attention",),
    whole="experts keep their width",
    small=FEW_EXPERTS,
)
