"""OLMo 3: OLMo 2 with sliding-window attention."""

from spqlm.model.families.base import Family

FAMILY = Family(
    prunes=("mlp",), whole="a norm spans the heads, and its weights would have to be cut too"
)
