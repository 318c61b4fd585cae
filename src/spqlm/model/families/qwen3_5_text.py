"""Qwen3.5: linear attention in most layers, gated attention in the others."""

from spqlm.model.families.base import Family

FAMILY = Family(
    prunes=("mlp",),
    whole="a head has a gate among the rows of the query projection",
    small={
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
    },
)
