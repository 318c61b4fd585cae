"""DeepSeek-V2: latent attention, experts behind the first layers."""

from spqlm.model.families.base import FEW_EXPERTS, Family

FAMILY = Family(
    prunes=("mlp",),
    whole="heads share a latent; experts keep their width",
    small={
        **FEW_EXPERTS,
        "num_key_value_heads": 4,
        "head_dim": None,
        "q_lora_rank": 32,
        "kv_lora_rank": 32,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 16,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
    },
)
