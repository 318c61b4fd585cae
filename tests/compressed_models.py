"""Tiny compressed models on disk, for the tests of saving and loading."""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from spqlm.checkpoint.quantizer import attach
from spqlm.formats.int8 import Int8
from spqlm.formats.low_rank import of_factors
from spqlm.model.tying import retie
from spqlm.modules.linear import CompressedLinear
from spqlm.modules.ops import dense_weight, linear_of, select, with_weight
from spqlm.numerics import low_rank
from tests.helpers import tiny_model

LAST = "model.layers.1"
PROJECTIONS = [
    *(f"self_attn.{part}_proj" for part in "qkvo"),
    *(f"mlp.{part}_proj" for part in ("gate", "up", "down")),
]


def change(model: PreTrainedModel, name: str, operation: Callable) -> None:
    model.set_submodule(name, operation(model.get_submodule(name)))


def to_int8(module: torch.nn.Module) -> torch.nn.Module:
    """A linear layer or an embedding."""
    return with_weight(module, Int8().nearest(module.weight.detach()))


def factorised(module: torch.nn.Module) -> torch.nn.Module:
    return linear_of(of_factors(*low_rank.truncate(dense_weight(module), 8)), module.bias)


def tie_head(model: PreTrainedModel) -> None:
    """The head uses the parameters of the compressed embedding."""
    model.lm_head = CompressedLinear(model.model.embed_tokens.stored_weight, None)


def prune(model: PreTrainedModel) -> None:
    kept = torch.arange(0, 128, 2)
    for part in ("gate_proj", "up_proj"):
        change(model, f"{LAST}.mlp.{part}", lambda module: select(module, "output", kept))
    change(model, f"{LAST}.mlp.down_proj", lambda module: select(module, "input", kept))


def quantize_all(model: PreTrainedModel) -> None:
    """Every linear layer and factor that is still dense, and the embedding."""
    for name, module in list(model.model.named_modules()):
        if isinstance(module, torch.nn.Linear):
            change(model, f"model.{name}", to_int8)
    tied = model.lm_head.weight is model.model.embed_tokens.weight
    change(model, "model.embed_tokens", to_int8)
    if tied:
        tie_head(model)
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


UNAWARE = """
import json, sys
from transformers import AutoModelForCausalLM

results = {}
for directory in sys.argv[1:]:
    try:
        AutoModelForCausalLM.from_pretrained(directory)
        results[directory] = "loaded"
    except Exception as error:
        results[directory] = f"{type(error).__name__}: {error}"
assert "spqlm" not in sys.modules
print(json.dumps(results))
"""


def without_the_package(directories: Sequence[Path]) -> dict[str, str]:
    """What plain transformers says of each checkpoint, in one process of its own."""
    child = subprocess.run(
        [sys.executable, "-c", UNAWARE, *map(str, directories)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    results: dict[str, str] = json.loads(child.stdout.splitlines()[-1])
    return results
