"""OPT: multi-head attention with biases, an MLP of two projections."""

from spqlm.model.families.base import Attention, Family, Mlp

FAMILY = Family(
    attention=Attention(output="self_attn.out_proj"),
    mlp=Mlp(inputs=("fc1",), scored="fc1", output="fc2", size="ffn_dim"),
    small={"ffn_dim": 128},
)
