"""GPT-2: queries, keys and values in one projection, an MLP of two, weights [in, out]."""

from spqlm.model.families.base import Family, Mlp

FAMILY = Family(
    prunes=("mlp",),
    mlp=Mlp(inputs=("mlp.c_fc",), scored="mlp.c_fc", output="mlp.c_proj", size="n_inner"),
    whole="queries, keys and values are rows of one projection",
    small={"n_inner": 128},
)
