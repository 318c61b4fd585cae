"""Tiny compressed models on disk, for the tests of saving and loading."""

import functools
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from spqlm.checkpoint.quantizer import attach
from spqlm.model.tying import retie
from spqlm.modules.low_rank_linear import LowRankLinear
from spqlm.modules.ops import dense_weight, select_inputs, select_outputs
from spqlm.modules.quantized_embedding import QuantizedEmbedding
from spqlm.modules.quantized_linear import QuantizedLinear
from spqlm.numerics import low_rank
from tests.helpers import tiny_model

LAST = "model.layers.1"
PROJECTIONS = [
    *(f"self_attn.{part}_proj" for part in "qkvo"),
    *(f"mlp.{part}_proj" for part in ("gate", "up", "down")),
]


def change(model: PreTrainedModel, name: str, operation: Callable) -> None:
    model.set_submodule(name, operation(model.get_submodule(name)))


def to_int8(module: torch.nn.Linear) -> QuantizedLinear:
    return QuantizedLinear.from_weight(module.weight.detach(), module.bias, "per_channel")


def factorised(module: torch.nn.Module) -> LowRankLinear:
    return LowRankLinear.from_factors(*low_rank.truncate(dense_weight(module), 8), module.bias)


def prune(model: PreTrainedModel) -> None:
    kept = torch.arange(0, 128, 2)
    for part in ("gate_proj", "up_proj"):
        change(model, f"{LAST}.mlp.{part}", lambda module: select_outputs(module, kept))
    change(model, f"{LAST}.mlp.down_proj", lambda module: select_inputs(module, kept))


def quantize_all(model: PreTrainedModel) -> None:
    """Every linear layer and factor that is still dense, and the embedding."""
    for name, module in list(model.model.named_modules()):
        if isinstance(module, torch.nn.Linear):
            change(model, f"model.{name}", to_int8)
    tied = model.lm_head.weight is model.model.embed_tokens.weight
    table = QuantizedEmbedding.from_embedding(model.model.embed_tokens, "per_channel")
    model.model.embed_tokens = table
    if tied:
        head = QuantizedLinear.from_tensors(table.codes, table.scale, None)
        head.codes, head.scale = table.codes, table.scale
        model.lm_head = head
    else:
        change(model, "lm_head", to_int8)
    retie(model)


def factorise_attention(model: PreTrainedModel) -> None:
    for layer in ("model.layers.0", LAST):
        for part in "qkvo":
            change(model, f"{layer}.self_attn.{part}_proj", factorised)


STEPS = {
    "int8": [quantize_all],
    "pruned": [prune],
    "low_rank": [factorise_attention],
    "paper": [factorise_attention, prune, quantize_all],
}


@functools.cache
def compressed(kind: str, tied: bool, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Made once, and only read by the tests."""
    model = tiny_model(tie_word_embeddings=tied, dtype=dtype)
    for step in STEPS[kind]:
        step(model)
    attach(model)
    return model


def load(directory: Path, **options) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(directory, **options).eval()


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for file in directory.glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }


def assert_same_state(one: PreTrainedModel, other: PreTrainedModel) -> None:
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype
        assert torch.equal(tensor, second[name]), name
