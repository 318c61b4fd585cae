"""Gemma 4 (text): layers of several head widths that share keys and values."""

from spqlm.model.families.base import Family

FAMILY = Family(
    prunes=("mlp",),
    whole="layers share keys and values with layers before them",
    small={
        "layer_types": ["sliding_attention", "full_attention"],
        "global_head_dim": 16,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 260,
    },
)
