"""Small random models of every family: what it can do is tried on them."""

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from spqlm.model.families import family_for

VOCABULARY = 260
# Grouped-query attention where there is any. What a family's own config lacks is left out.
_FIELDS: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}


def small_config(model_type: str, **overrides: Any) -> PretrainedConfig:
    """The config of a model of two layers, or of one layer of each kind.

    Args:
        model_type: in transformers.
        overrides: of its fields.

    Raises:
        ValueError: transformers has no such type.
    """
    own = AutoConfig.for_model(model_type)
    known = own.to_dict() | own.attribute_map
    shared = {name: value for name, value in _FIELDS.items() if name in known}
    # A family leaves a field to the config's own default by None.
    fields = shared | dict(family_for(model_type).small)
    wanted = {name: value for name, value in fields.items() if value is not None}
    config: PretrainedConfig = AutoConfig.for_model(model_type, **(wanted | overrides))
    return config


def small_model(
    model_type: str, *, dtype: torch.dtype = torch.float32, seed: int = 0, **overrides: Any
) -> PreTrainedModel:
    """A random model whose weights are large enough for logits to tell mistakes apart.

    Args:
        model_type: in transformers.
        dtype: of its weights.
        seed: of their values.
        overrides: of the fields of `small_config`.
    """
    torch.manual_seed(seed)
    config = small_config(model_type, **overrides)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim in (2, 3):
                parameter.normal_(0, 0.15)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.05)
    return model.eval()


def small_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, after three special ones: `<s>`, `</s>` and `<pad>`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0, "</s>": 1, "<pad>": 2}
    vocabulary |= {symbol: index + 3 for index, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
