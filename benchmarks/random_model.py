"""Checkpoints of random weights in the shape of a large model, for measuring what speed is about.

    python benchmarks/random_model.py OUT [--shape llama-2-7b | moe-300m] [--layers N]
        [--formats bfloat16 ...] [--device cuda]
    cd OUT && spq bench bfloat16 int8 pruned-int8 int4 sparse --batch 1 --prefill 512 --optimize

Writes OUT/FORMAT, one after the other. Layers are made in their format, without a dense copy, so it
takes the memory of the largest model. `int4` has groups of 64, `sparse` 4 bits in groups of 16 of
which half are left out; `pruned-int8` is int8 with three quarters of the neurons and attention in
two factors of a quarter of its rank. All of these have an int8 embedding and lm_head. `moe-300m`
has 32 experts in each layer, of which 4 see a token.
"""

import argparse
import copy
import json
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen3MoeConfig,
)

from spqlm.checkpoint.atomic import atomic_directory
from spqlm.checkpoint.quantizer import attach
from spqlm.formats import StoredWeight, group_sparse
from spqlm.formats.dense import Dense, DenseWeight
from spqlm.formats.int4 import Int4
from spqlm.formats.int8 import Int8
from spqlm.formats.low_rank import LowRank, LowRankWeight
from spqlm.model.experts import close_experts, open_experts
from spqlm.modules.embedding import CompressedEmbedding
from spqlm.modules.ops import linear_of

SHAPES: dict[str, PretrainedConfig] = {
    "llama-2-7b": LlamaConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    ),
    "moe-300m": Qwen3MoeConfig(
        vocab_size=32000,
        hidden_size=512,
        moe_intermediate_size=384,
        num_hidden_layers=16,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=64,
        num_experts=32,
        num_experts_per_tok=4,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    ),
}
# What trained weights of such models are about.
DEVIATION = 0.02
GROUP, SPARSE_GROUP = 64, 16
DTYPE = torch.bfloat16


def _scale(*shape: int, levels: float) -> Tensor:
    """Scales that make evenly drawn codes, `levels` their deviation, as wide as weights are."""
    return torch.full(shape, DEVIATION / levels, dtype=DTYPE)


def int4(rows: int, columns: int) -> StoredWeight:
    codes = torch.randint(0, 256, (rows, columns // 2), dtype=torch.uint8)
    scale = _scale(rows, columns // GROUP, levels=4.6)
    return Int4(group_size=GROUP).hold({"codes": codes, "scale": scale}, columns)


def int8(rows: int, columns: int) -> StoredWeight:
    codes = torch.randint(-127, 128, (rows, columns), dtype=torch.int8)
    return Int8().hold({"codes": codes, "scale": _scale(rows, levels=73)}, columns)


def sparse(rows: int, columns: int) -> StoredWeight:
    keep = torch.rand(rows, columns // SPARSE_GROUP) < 0.5
    codes = torch.randint(-8, 8, (rows, columns), dtype=torch.int8)
    scale = _scale(*keep.shape, levels=4.6)
    return group_sparse.pack(codes, scale, None, keep, 4)


def low_rank(rows: int, columns: int) -> StoredWeight:
    rank = min(rows, columns) // 4
    return LowRankWeight(LowRank(rank=rank, factor=Int8()), int8(rows, rank), int8(rank, columns))


def dense(rows: int, columns: int) -> StoredWeight:
    return DenseWeight(Dense(), torch.empty(rows, columns, dtype=DTYPE).normal_(std=DEVIATION))


WEIGHTS = {
    "bfloat16": dense,
    "int8": int8,
    "pruned-int8": int8,
    "int4": int4,
    "sparse": sparse,
}


def embedding(rows: int, columns: int, quantized: bool) -> nn.Module:
    if quantized:
        return CompressedEmbedding(int8(rows, columns))
    return nn.Embedding(rows, columns, _weight=torch.randn(rows, columns, dtype=DTYPE))


def make(config: PretrainedConfig, name: str) -> PreTrainedModel:
    """A model with every linear layer in a format; lm_head in int8 where that is not bfloat16."""
    pruned = name == "pruned-int8"
    if pruned:
        config = copy.copy(config)
        width = "moe_intermediate_size" if hasattr(config, "num_experts") else "intermediate_size"
        setattr(config, width, getattr(config, width) * 3 // 4)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=DTYPE)
        open_experts(model)
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            weight = WEIGHTS[name]
            if path == "lm_head" and name != "bfloat16":
                weight = int8
            elif pruned and ".self_attn." in path:
                weight = low_rank
            stored = weight(module.out_features, module.in_features)
            model.set_submodule(path, linear_of(stored, None))
        elif isinstance(module, nn.Embedding):
            shape = (module.num_embeddings, module.embedding_dim)
            model.set_submodule(path, embedding(*shape, quantized=name != "bfloat16"))
        elif module.__class__.__name__.endswith("RMSNorm"):
            module.weight = nn.Parameter(
                torch.ones_like(module.weight, device=torch.get_default_device())
            )
        elif "weight" in module._parameters and module.weight.is_meta:
            module.weight = nn.Parameter(dense(*module.weight.shape).weight)  # a router
    close_experts(model)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="llama-2-7b")
    parser.add_argument("--layers", type=int, help="instead of the shape's")
    parser.add_argument("--formats", nargs="+", choices=WEIGHTS, default=list(WEIGHTS))
    parser.add_argument("--device", default="cpu", help="that makes them; a GPU is faster")
    arguments = parser.parse_args()
    torch.set_default_device(arguments.device)
    config = SHAPES[arguments.shape]
    if arguments.layers:
        config.num_hidden_layers = arguments.layers
    torch.manual_seed(0)
    for name in arguments.formats:
        with atomic_directory(arguments.out / name, overwrite=True) as directory:
            model = make(config, name)
            attach(model)
            model.save_pretrained(directory)
            del model
        size = sum(file.stat().st_size for file in (arguments.out / name).glob("*.safetensors"))
        print(json.dumps({"format": name, "bytes": size}))


if __name__ == "__main__":
    main()
