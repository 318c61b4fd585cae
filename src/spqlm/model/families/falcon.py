"""Falcon: queries, keys and values in one projection, an MLP of two."""

from spqlm.model.families.base import Family, Mlp

FAMILY = Family(
    prunes=("mlp",),
    mlp=Mlp(
        inputs=("mlp.dense_h_to_4h",),
        scored="mlp.dense_h_to_4h",
        output="mlp.dense_4h_to_h",
        size="ffn_hidden_size",
    ),
    whole="queries, keys and values are rows of one projection",
    small={"head_dim": None, "ffn_hidden_size": 128},
)
