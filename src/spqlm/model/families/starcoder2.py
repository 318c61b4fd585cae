"""StarCoder 2: Llama's attention with biases, an MLP of two projections."""

from spqlm.model.families.base import Family, Mlp

FAMILY = Family(mlp=Mlp(inputs=("mlp.c_fc",), scored="mlp.c_fc", output="mlp.c_proj"))
