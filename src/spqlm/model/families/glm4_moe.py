"""GLM-4.5: Llama's attention, experts behind the first layers."""

from spqlm.model.families.base import FEW_EXPERTS, Family

FAMILY = Family(
    whole="experts keep their width",
    small={**FEW_EXPERTS, "first_k_dense_replace": 1},
)
