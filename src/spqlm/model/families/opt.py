"""OPT: multi-head attention with biases, an MLP of two projections."""

from spqlm.model.families.base import Attention, Family, Mlp

FAMILY = Family(
    layers="model.decoder.layers",
    embedding="model.decoder.embed_tokens",
    intermediate_size="ffn_dim",
    attention=Attention(output="self_attn.out_proj"),
    mlp=Mlp(inputs=("fc1",), scored="fc1", output="fc2"),
)
