"""OLMo 2: Llama's layout with norms over all queries and all keys."""

from spqlm.model.families.base import Family

FAMILY = Family(
    prunes=("mlp",), whole="a norm spans the heads, and its weights would have to be cut too"
)
