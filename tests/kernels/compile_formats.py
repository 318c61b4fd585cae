"""Compiles and exports a layer of every format, on tensors that are not aligned.

    python -m tests.kernels.compile_formats

Prints a line of JSON for each: what it is, and whether each way gives what eager PyTorch does. A
process of its own, for what is tested is first of all that it does not die.
"""

import json
from collections.abc import Iterator

import torch
from tests.compressed_models import change, quantize_all
from tests.helpers import tiny_model
from torch import Tensor, nn
from transformers import StaticCache

from spqlm import formats
from spqlm.checkpoint.quantizer import attach
from spqlm.formats._blocks import InBlocks
from spqlm.formats._nonlinear import Nonlinear
from spqlm.modules.ops import embedding_of, linear_of, with_weight
from spqlm.numerics.metric import Metric

OUT, IN = 48, 64
FIELDS = {
    "dense": [{}],
    "int8": [{"granularity": "per_channel"}, {"granularity": "per_tensor"}],
    "nl3": [{"group_size": 32}, {"group_size": 32, "scales": "int8"}],
    "w8a8": [{"granularity": "per_channel"}],
    "group_sparse": [{"kept": 90, "zero": True}, {"kept": 90, "bits": 8}],
    "low_rank": [
        {"rank": 32, "factor": {"int8": {}}},
        {"rank": 32, "factor": {"int4": {"group_size": 32}}},
    ],
}
GROUPS = [{"group_size": 32}]
# Formats of ggml share their code; these stand for them.
BLOCKS = ("q4_k", "iq4_nl")
NO_TABLES = ("group_sparse", "low_rank", "w8a8")
TABLES = tuple(name for name in formats.available() if name not in NO_TABLES)


def shifted(tensor: Tensor) -> Tensor:
    """The same values where nothing wider than an element is aligned."""
    room = torch.empty(tensor.nbytes + 128, dtype=torch.uint8)
    start = -room.data_ptr() % 64 + tensor.itemsize
    moved = room[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
    return moved.copy_(tensor)


def unaligned(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        parameter.data = shifted(parameter.data)
    return module


def near(found: Tensor, wanted: Tensor) -> bool:
    """As near as rounding weights to bfloat16 leaves them."""
    return bool(((found - wanted).norm() <= 0.02 * wanted.norm()).item())


def agreements(module: nn.Module, given: list[Tensor]) -> dict[str, bool]:
    """Compiled and exported, each against eager."""
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True)
    exported = torch.export.export(module, (given[-1],)).module()
    agree = {
        "compiled": all(torch.equal(compiled(x), module(x)) for x in given),
        "exported": near(exported(given[-1]), module(given[-1])),
        "exported without us": not any("spqlm" in str(n.target) for n in exported.graph.nodes),
    }
    if getattr(module, "format", None) and module.format.name == "int8":
        # The one whose formula Inductor knows.
        agree["exported and compiled"] = near(torch.compile(exported)(given[-1]), module(given[-1]))
    return agree


def modules() -> Iterator[tuple[str, nn.Module, list[Tensor]]]:
    """What it is called, the module, and what is given to it."""
    generator = torch.Generator().manual_seed(0)
    random = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    for name in formats.available():
        kind = formats.format_class(name)
        in_blocks = issubclass(kind, InBlocks) and not issubclass(kind, Nonlinear)
        if in_blocks and name not in BLOCKS:
            continue
        for fields in [{}] if in_blocks else FIELDS.get(name, GROUPS):
            form = formats.parse({name: fields})
            width = max(IN, form.multiple)
            given = [shifted(random(count, width).to(torch.bfloat16)) for count in (1, 3, 40)]
            metric = Metric([(torch.eye(width), torch.ones(OUT))])
            weight = form.fit(random(OUT, width), metric, "nearest").cast(torch.bfloat16)
            bias = random(OUT).to(torch.bfloat16)
            yield f"{name} {fields}", unaligned(linear_of(weight, bias)), given
            if name in TABLES:
                table = embedding_of(weight, nn.Embedding(OUT, width, dtype=torch.bfloat16))
                yield f"{name} {fields} embedding", table, [torch.tensor([[3, 1], [7, 47]])]


PARTS = {
    "self_attn.q_proj": {"int2": {"group_size": 32}},
    "self_attn.k_proj": {"int3": {"group_size": 32}},
    "self_attn.v_proj": {"int5": {"group_size": 32}},
    "self_attn.o_proj": {"int6": {"group_size": 32}},
    "mlp.gate_proj": {"low_rank": {"rank": 32, "factor": {"int8": {}}}},
    "mlp.up_proj": {"group_sparse": {"kept": 200}},
    "mlp.down_proj": {"int4": {"group_size": 32}},
}


def whole_model() -> dict[str, bool]:
    """Formats side by side: a prompt, steps with a cache of fixed length, and an export."""
    torch._dynamo.reset()
    model = tiny_model(dtype=torch.bfloat16, num_hidden_layers=1, tie_word_embeddings=True)
    for name, stated in PARTS.items():
        change(model, f"model.layers.0.{name}", lambda module, s=stated: in_format(module, s))
    quantize_all(model)
    attach(model)
    ids = torch.arange(3, 9)[None]
    compiled = torch.compile(model, fullgraph=True)
    fixed = StaticCache(config=model.config, max_cache_len=16)
    prompt = compiled(ids[:, :4], past_key_values=fixed).logits
    steps = [compiled(ids[:, at : at + 1], past_key_values=fixed).logits for at in (4, 5)]
    wanted = model(ids).logits
    exported = torch.export.export(model, (ids,), {"use_cache": False}, strict=False).module()
    return {
        "compiled": near(torch.cat([prompt, *steps], 1), wanted),
        "exported": near(exported(ids, use_cache=False).logits, wanted),
    }


def in_format(module: nn.Linear, stated: dict[str, object]) -> nn.Module:
    weight = module.weight.detach().float()
    metric = Metric([(torch.eye(weight.shape[1]), torch.ones(len(weight)))])
    return with_weight(module, formats.parse(stated).fit(weight, metric, "nearest"))


def main() -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        for name, module, given in modules():
            print(json.dumps({"what": name} | agreements(module, given)), flush=True)
        print(json.dumps({"what": "a model"} | whole_model()), flush=True)


if __name__ == "__main__":
    main()
