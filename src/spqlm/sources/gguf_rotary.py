"""Rotary scaling of GGUF files, which transformers' reader drops, as a config states it."""

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from spqlm.errors import SpqError
from spqlm.sources.gguf_file import GgufFile

# What each frequency is divided by: at every length, or up to the context that the model was first
# trained on and beyond it.
FACTORS = "rope_freqs.weight"
SHORT, LONG = "rope_factors_short.weight", "rope_factors_long.weight"
ROTARY_TENSORS = (FACTORS, SHORT, LONG)

# By kind of scaling, a config's keys and the file's; none where nothing is scaled.
_SHARED = {"factor": "factor", "original_max_position_embeddings": "original_context_length"}
KEYS: dict[str | None, dict[str, str]] = {
    None: {},
    "none": {},
    "linear": {"factor": "factor"},
    "yarn": _SHARED
    | {
        "attention_factor": "attn_factor",
        "beta_fast": "yarn_beta_fast",
        "beta_slow": "yarn_beta_slow",
    },
    "longrope": _SHARED | {"attention_factor": "attn_factor"},
}

# Llama 3.1 to 3.3: what llama.cpp makes FACTORS of, less the factor itself.
LLAMA3 = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def rope_parameters(file: GgufFile, config: PreTrainedConfig) -> Any:
    """`rope_parameters` of a config with the scaling that its file states.

    Args:
        file: with ROTARY_TENSORS.
        config: as transformers reads it from the file.

    Raises:
        SpqError: a kind of scaling that no config can state; names it.
    """
    plain = getattr(config, "rope_parameters", None)
    if plain is None:
        return None
    if "full_attention" in plain:
        # Only layers that see the whole context are scaled (Gemma 3).
        scaled = _scaled(file, config, plain["full_attention"])
        return {**plain, "full_attention": scaled}
    return _scaled(file, config, plain)


def _scaled(file: GgufFile, config: PreTrainedConfig, plain: Mapping[str, Any]) -> dict[str, Any]:
    kept = {k: v for k, v in plain.items() if k in ("rope_theta", "partial_rotary_factor")}
    if FACTORS in file.tensors:
        return kept | _by_factors(file.tensors[FACTORS].float(), config, kept)
    kind = file.stated("rope.scaling.type")
    if kind not in KEYS:
        raise SpqError(
            f"{file.path.name!r} has rotary scaling of the type {kind!r}, which is none of "
            f"{', '.join(filter(None, KEYS))}"
        )
    if not KEYS[kind]:
        return dict(plain)
    found = kept | {"rope_type": kind}
    for ours, theirs in KEYS[kind].items():
        value = file.stated(f"rope.scaling.{theirs}")
        if value is not None:
            found[ours] = value
    if kind == "longrope":
        factors = {"short_factor": SHORT, "long_factor": LONG}
        found |= {key: file.tensors[name].tolist() for key, name in factors.items()}
    elif "attention_factor" in found:
        # llama.cpp multiplies yarn's own factor by it; a config states the product.
        found["attention_factor"] *= 1 + 0.1 * math.log(found["factor"])
    return found


def _by_factors(
    factors: Tensor, config: PreTrainedConfig, kept: Mapping[str, Any]
) -> dict[str, Any]:
    """Llama 3's scaling where the factors are its own; else longrope, alike at all lengths."""
    plain = _frequencies(config, {**kept, "rope_type": "linear", "factor": 1.0})
    if factors.shape != plain.shape:
        raise ValueError(f"{FACTORS} has {factors.numel()} factors, not {plain.numel()}")
    llama3 = LLAMA3 | {"factor": float(factors.max())}
    if torch.allclose(_frequencies(config, {**kept, **llama3}) * factors, plain, rtol=1e-5, atol=0):
        return llama3
    return {
        "rope_type": "longrope",
        "short_factor": factors.tolist(),
        "long_factor": factors.tolist(),
        "factor": 1.0,
        "attention_factor": 1.0,
        "original_max_position_embeddings": config.max_position_embeddings,
    }


def _frequencies(config: PreTrainedConfig, parameters: dict[str, Any]) -> Tensor:
    """Float32 [half of the rotary width]."""
    trial = copy.deepcopy(config)
    trial.rope_parameters = parameters
    found: Tensor = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](trial, torch.device("cpu"))[0]
    return found
