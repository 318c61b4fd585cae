"""Checkpoints of random weights in the shape of a large model, for measuring what speed is about.

    python benchmarks/random_model.py OUT [--shape llama-2-7b] [--layers N] [--formats bfloat16 ...]
        [--device cuda]
    cd OUT && spq bench bfloat16 int8 pruned-int8 int4 sparse --batch 1 --prefill 512 --optimize

Writes OUT/FORMAT, one after the other. Layers are made in their format, without a dense copy, so it
takes the memory of the largest model. `int4` has groups of 64, `sparse` 4 bits in groups of 16 of
which half are left out; `pruned-int8` is int8 with three quarters of the neurons and attention in
two factors of a quarter of its rank. All of these have an int8 embedding and lm_head.
"""

import argparse
import copy
import json
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from spqlm.checkpoint.atomic import atomic_directory
from spqlm.checkpoint.quantizer import attach
from spqlm.modules.group_sparse_linear import GroupSparseLinear
from spqlm.modules.int4_linear import Int4Linear
from spqlm.modules.low_rank_linear import LowRankLinear
from spqlm.modules.quantized_embedding import QuantizedEmbedding
from spqlm.modules.quantized_linear import QuantizedLinear
from spqlm.numerics import group_sparse

SHAPES = {
    "llama-2-7b": LlamaConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    )
}
# What trained weights of such models are about.
DEVIATION = 0.02
GROUP, SPARSE_GROUP = 64, 16
DTYPE = torch.bfloat16


def int8(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Codes, and a scale for every row."""
    codes = torch.randint(-127, 128, (rows, columns), dtype=torch.int8)
    return codes, _scale(rows, levels=73)


def _scale(*shape: int, levels: float) -> Tensor:
    """Scales that make evenly drawn codes, `levels` their deviation, as wide as weights are."""
    return torch.full(shape, DEVIATION / levels, dtype=DTYPE)


def int4_linear(rows: int, columns: int) -> nn.Module:
    codes = torch.randint(0, 256, (rows, columns // 2), dtype=torch.uint8)
    return Int4Linear.from_codes(codes, _scale(rows, columns // GROUP, levels=4.6), None)


def int8_linear(rows: int, columns: int) -> nn.Module:
    return QuantizedLinear.from_tensors(*int8(rows, columns), None)


def sparse_linear(rows: int, columns: int) -> nn.Module:
    keep = torch.rand(rows, columns // SPARSE_GROUP) < 0.5
    codes = torch.randint(-8, 8, (rows, columns), dtype=torch.int8)
    scale = _scale(*keep.shape, levels=4.6)
    weight = group_sparse.pack(codes, scale, None, keep, 4)
    return GroupSparseLinear.from_weight(weight, None)


def low_rank_linear(rows: int, columns: int) -> nn.Module:
    rank = min(rows, columns) // 4
    return LowRankLinear(int8_linear(rank, columns), int8_linear(rows, rank))


def dense_linear(rows: int, columns: int) -> nn.Module:
    linear = nn.Linear(columns, rows, bias=False, dtype=DTYPE, device="meta")
    linear.to_empty(device=torch.get_default_device())
    nn.init.normal_(linear.weight, std=DEVIATION)
    return linear


LINEAR = {
    "bfloat16": dense_linear,
    "int8": int8_linear,
    "pruned-int8": int8_linear,
    "int4": int4_linear,
    "sparse": sparse_linear,
}


def embedding(rows: int, columns: int, quantized: bool) -> nn.Module:
    if quantized:
        table = QuantizedEmbedding(
            rows, columns, granularity="per_channel", embed_scale=1.0, padding_idx=None, dtype=DTYPE
        )
        table.hold(*int8(rows, columns))
        return table
    return nn.Embedding(rows, columns, _weight=torch.randn(rows, columns, dtype=DTYPE))


def make(config: LlamaConfig, name: str) -> PreTrainedModel:
    """A model with every linear layer in a format; lm_head in int8 where that is not bfloat16."""
    pruned = name == "pruned-int8"
    if pruned:
        config = copy.copy(config)
        config.intermediate_size = config.intermediate_size * 3 // 4
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=DTYPE)
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            linear = LINEAR[name]
            if path == "lm_head" and name != "bfloat16":
                linear = int8_linear
            elif pruned and ".self_attn." in path:
                linear = low_rank_linear
            model.set_submodule(path, linear(module.out_features, module.in_features))
        elif isinstance(module, nn.Embedding):
            shape = (module.num_embeddings, module.embedding_dim)
            model.set_submodule(path, embedding(*shape, quantized=name != "bfloat16"))
        elif module.__class__.__name__.endswith("RMSNorm"):
            module.weight = nn.Parameter(
                torch.ones_like(module.weight, device=torch.get_default_device())
            )
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="llama-2-7b")
    parser.add_argument("--layers", type=int, help="instead of the shape's")
    parser.add_argument("--formats", nargs="+", choices=LINEAR, default=list(LINEAR))
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
