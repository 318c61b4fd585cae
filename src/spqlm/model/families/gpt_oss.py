"""gpt-oss: attention with a sink for each head, experts for an MLP."""

from spqlm.model.families.base import FEW_EXPERTS, Family

FAMILY = Family(
    prunes=(),
    whole="each head has a sink; experts keep their width",
    small=FEW_EXPERTS,
)
