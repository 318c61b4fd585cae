"""LFM2: short convolutions in most layers, grouped-query attention in the others."""

from spqlm.model.families.base import Attention, Family, Mlp

FAMILY = Family(
    attention=Attention(output="self_attn.out_proj"),
    mlp=Mlp(
        inputs=("feed_forward.w1", "feed_forward.w3"),
        scored="feed_forward.w3",
        output="feed_forward.w2",
    ),
    small={
        "layer_types": ["conv", "full_attention"],
        "block_ff_dim": 128,
        "block_auto_adjust_ff_dim": False,
    },
)
