"""Nemotron-H: a layer is Mamba, attention, an MLP or experts."""

from spqlm.model.families.base import FEW_EXPERTS, Attention, Family, Mlp

FAMILY = Family(
    attention=Attention(
        module="mixer",
        query="mixer.q_proj",
        key="mixer.k_proj",
        value="mixer.v_proj",
        output="mixer.o_proj",
    ),
    mlp=Mlp(inputs=("mixer.up_proj",), scored="mixer.up_proj", output="mixer.down_proj"),
    whole="experts and the channels of Mamba keep their width",
    small={
        **FEW_EXPERTS,
        "layers_block_type": ["mamba", "moe", "attention", "mlp"],
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "ssm_state_size": 8,
        "n_groups": 2,
        "moe_shared_expert_intermediate_size": 32,
        "chunk_size": 16,
    },
)
