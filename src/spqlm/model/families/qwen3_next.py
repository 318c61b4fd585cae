"""Qwen3-Next: linear attention in most layers, gated attention in the others, experts."""

from spqlm.model.families.base import FEW_EXPERTS, Family

FAMILY = Family(
    prunes=(),
    whole="a head has a gate among the rows of its projection; experts keep their width",
    small={
        **FEW_EXPERTS,
        "layer_types": ["linear_attention", "full_attention"],
        "shared_expert_intermediate_size": 32,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
    },
)
