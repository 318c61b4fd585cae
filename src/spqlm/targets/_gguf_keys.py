"""What llama.cpp calls each kind of model, and the numbers that it reads of one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gguf
import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from spqlm.errors import SpqError
from spqlm.model.view import ModelView


@dataclass(frozen=True)
class Architecture:
    """An architecture of llama.cpp.

    Attributes:
        name: there.
        activation: of the MLP, as transformers calls it; llama.cpp reads none.
        pairs: whether rotary embeddings turn neighbouring rows, not rows of the two halves of a
            head, so that rows of queries and keys change places.
        norm_shift: what is added to norm weights.
        frequencies: whether it reads factors of rotary frequencies.
        windows: whether it has layers with a sliding window: five of six, the sixth being the full
            one. It reads no other pattern of them.
        biases: whether attention may have any that its config states.
        experts: whether every layer has experts, whose shares of a token's output sum to 1.
    """

    name: str
    activation: str = "silu"
    pairs: bool = False
    norm_shift: float = 0.0
    frequencies: bool = False
    windows: bool = False
    biases: bool = False
    experts: bool = False


# Layers from one with full attention to the next.
PERIOD = 6
LLAMA = Architecture("llama", pairs=True, frequencies=True, biases=True)
# Llama with sizes of its own in every layer.
DECI = Architecture("deci", pairs=True, frequencies=True, biases=True)
ARCHITECTURES = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
    "mixtral": Architecture("llama", pairs=True, experts=True),
    "qwen3_moe": Architecture("qwen3moe", experts=True),
    "gemma3_text": Architecture(
        "gemma3", activation="gelu_pytorch_tanh", norm_shift=1.0, windows=True
    ),
}
"""By `model_type` of transformers."""


def architecture(config: PretrainedConfig) -> Architecture:
    """That of a model.

    Raises:
        SpqError: llama.cpp has none, or it computes something else.
    """
    known = ARCHITECTURES.get(config.model_type)
    if known is None:
        raise SpqError(
            f"gguf has no place for model type {config.model_type!r}, only for "
            f"{', '.join(ARCHITECTURES)}"
        )
    unlike = _unlike(config, known)
    if unlike is not None:
        raise SpqError(f"llama.cpp computes {known.name!r} in another way: this model has {unlike}")
    return known


def _unlike(config: PretrainedConfig, known: Architecture) -> str | None:
    """What the model has and llama.cpp does not compute; None for nothing."""
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    if activation != known.activation:
        return f"the activation {activation!r}, not {known.activation!r}"
    kinds = getattr(config, "layer_types", None) or ()
    if not known.windows and "sliding_attention" in kinds:
        return "layers with a sliding window"
    if known.windows:
        usual = [(index + 1) % PERIOD != 0 for index in range(len(kinds))]
        if [kind == "sliding_attention" for kind in kinds] != usual:
            return "layers with full attention elsewhere than at every sixth place"
        if config.rope_parameters["sliding_attention"].get("rope_type", "default") != "default":
            return "scaled rotary embeddings in layers with a sliding window"
    if known.experts:
        if getattr(config, "mlp_only_layers", ()) or getattr(config, "decoder_sparse_step", 1) != 1:
            return "layers without experts"
        if not getattr(config, "norm_topk_prob", True):
            return "experts whose shares do not sum to 1 (norm_topk_prob)"
    if getattr(config, "use_bidirectional_attention", False):
        return "attention to later tokens"
    if getattr(config, "attention_bias", False) and not known.biases:
        return "biases in attention"
    scaled_by = getattr(config, "query_pre_attn_scalar", None)
    if scaled_by is not None and scaled_by != _usual_scale(config):
        return f"query_pre_attn_scalar {scaled_by}"
    kind = _rope(config).get("rope_type", "default")
    if kind in ("default", "linear") or (kind == "llama3" and known.frequencies):
        return None
    return f"rotary embeddings scaled by {kind!r}"


def _usual_scale(config: PretrainedConfig) -> float:
    """What llama.cpp divides the queries of Gemma 3 by the root of; its 27B is an exception."""
    if config.num_hidden_layers == 62:
        return float(config.hidden_size / config.num_attention_heads)
    return float(config.head_dim)


def _rope(config: PretrainedConfig) -> dict[str, Any]:
    """Parameters of the rotary embedding, of full attention where there are two."""
    stated: dict[str, Any] = config.rope_parameters
    found: dict[str, Any] = stated.get("full_attention", stated)
    return found


def write_keys(writer: gguf.GGUFWriter, view: ModelView, known: Architecture) -> None:
    """Everything that llama.cpp reads of a model but tensors and tokenizer."""
    config, layers = view.model.config, view.layers
    writer.add_block_count(len(layers))
    writer.add_context_length(_context(config))
    writer.add_embedding_length(config.hidden_size)
    writer.add_vocab_size(config.vocab_size)
    widths = [config.intermediate_size if known.experts else n.intermediate_size for n in layers]
    heads = [layer.query_heads for layer in layers]
    groups = [layer.key_value_groups for layer in layers]
    uneven = known is DECI
    writer.add_feed_forward_length(widths if uneven else widths[0])
    writer.add_head_count(heads if uneven else heads[0])
    writer.add_head_count_kv(groups if uneven else groups[0])
    if known.experts:
        writer.add_expert_count(config.num_local_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        width = getattr(config, "moe_intermediate_size", config.intermediate_size)
        writer.add_expert_feed_forward_length(width)
    writer.add_key_length(view.head_dim)
    writer.add_value_length(view.head_dim)
    writer.add_rope_dimension_count(view.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = _rope(config)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if known.windows:
        writer.add_sliding_window(config.sliding_window)
        writer.add_sliding_window_pattern(
            [kind == "sliding_attention" for kind in config.layer_types]
        )
        writer.add_rope_freq_base_swa(config.rope_parameters["sliding_attention"]["rope_theta"])
        if getattr(config, "final_logit_softcapping", None):
            writer.add_final_logit_softcapping(config.final_logit_softcapping)


def _context(config: PretrainedConfig) -> int:
    """Tokens that it is right for: Mistral's window is not in llama.cpp's architecture."""
    window = getattr(config, "sliding_window", None) if config.model_type == "mistral" else None
    return min(config.max_position_embeddings, window or config.max_position_embeddings)


def frequency_factors(model: PreTrainedModel) -> Tensor | None:
    """What each rotary frequency is divided by, float32 [head_dim / 2]; None for nothing."""
    rope = _rope(model.config)
    if rope.get("rope_type") != "llama3":
        return None
    scale: Callable[..., Any] = ROPE_INIT_FUNCTIONS["llama3"]
    scaled, _ = scale(model.config, torch.device("cpu"))
    exponents = torch.arange(len(scaled), dtype=torch.float32) / len(scaled)
    return (rope["rope_theta"] ** -exponents / scaled).float()


def paired_rows(rows: int, head_dim: int) -> Tensor:
    """Order of the rows of queries or keys that puts what turns together side by side: [rows]."""
    heads = torch.arange(rows).unflatten(0, (-1, 2, head_dim // 2))
    return heads.transpose(1, 2).flatten()
