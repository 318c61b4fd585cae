import json

import pytest
import torch
from pydantic import ValidationError
from spqlm.modules.quantized_embedding import QuantizedEmbedding
from spqlm.modules.quantized_linear import QuantizedLinear
from torch import Tensor, nn

from spqlm.checkpoint.spec import SPECS, AttentionSpec, spec_of
from spqlm.modules.low_rank_linear import LowRankLinear


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def table(granularity: str, **options) -> QuantizedEmbedding:
    return QuantizedEmbedding(11, 6, granularity=granularity, **options)


MODULES = {
    "linear": lambda: nn.Linear(9, 7),
    "linear_no_bias": lambda: nn.Linear(9, 7, bias=False),
    "int8_channel": lambda: QuantizedLinear.from_weight(random(7, 9), random(7), "per_channel"),
    "int8_tensor": lambda: QuantizedLinear.from_weight(random(7, 9), None, "per_tensor"),
    "low_rank": lambda: LowRankLinear.from_factors(random(7, 3), random(3, 9), random(7)),
    "low_rank_no_bias": lambda: LowRankLinear.from_factors(random(7, 3), random(3, 9), None),
    "embedding_channel": lambda: table("per_channel"),
    "embedding_tensor": lambda: table("per_tensor", embed_scale=640**0.5, padding_idx=3),
    "embedding_whole_factor": lambda: table("per_channel", embed_scale=2.0, padding_idx=0),
}


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_module_is_rebuilt_from_the_json_of_its_spec(kind, dtype):
    module = MODULES[kind]().to(dtype)
    spec = spec_of(module)
    stored = json.loads(json.dumps({"x": spec.model_dump()}))
    read = SPECS.validate_python(stored)["x"]
    assert read == spec
    rebuilt = read.build(dtype)
    assert type(rebuilt) is type(module)
    assert spec_of(rebuilt) == spec
    expected = {name: (t.shape, t.dtype) for name, t in module.state_dict().items()}
    assert {name: (t.shape, t.dtype) for name, t in rebuilt.state_dict().items()} == expected
    assert SPECS.validate_json(json.dumps(stored))["x"] == spec


@torch.no_grad()
def test_a_rebuilt_module_computes_the_same_once_it_has_the_values():
    ids, x = torch.tensor([[1, 10]]), random(2, 9)
    for make in MODULES.values():
        module = make()
        if isinstance(module, QuantizedEmbedding):
            module.codes.data = torch.randint(-127, 128, (11, 6), dtype=torch.int8)
            module.scale.data.fill_(0.25)
        rebuilt = spec_of(module).build(torch.float32)
        rebuilt.load_state_dict(module.state_dict())
        inputs = ids if isinstance(module, QuantizedEmbedding) else x
        assert torch.equal(rebuilt(inputs), module(inputs))


def test_ordinary_modules_have_no_spec():
    for module in (nn.LayerNorm(3), nn.Embedding(3, 2), nn.ModuleList(), nn.ReLU()):
        assert spec_of(module) is None


def test_the_head_count_of_an_attention_block_is_stated():
    stored = json.loads(json.dumps({"x": AttentionSpec(num_heads=3).model_dump()}))
    assert SPECS.validate_python(stored)["x"] == AttentionSpec(num_heads=3)


INT8 = {
    "format": "int8",
    "in_features": 9,
    "out_features": 7,
    "bias": False,
    "granularity": "per_channel",
}
LOW_RANK = {"format": "low_rank", "in_features": 9, "out_features": 7, "bias": False, "rank": 3}
EMBEDDING = {
    "format": "int8_embedding",
    "num_embeddings": 11,
    "embedding_dim": 6,
    "granularity": "per_channel",
    "embed_scale": 1.0,
    "padding_idx": None,
}


@pytest.mark.parametrize("entry", [INT8, LOW_RANK, EMBEDDING], ids=lambda entry: entry["format"])
def test_every_field_is_needed_and_no_other_is_accepted(entry):
    SPECS.validate_python({"x": entry})
    for field in entry:
        with pytest.raises(ValidationError):
            SPECS.validate_python({"x": {key: entry[key] for key in entry if key != field}})
    with pytest.raises(ValidationError, match="Extra inputs"):
        SPECS.validate_python({"x": {**entry, "group_size": 32}})


@pytest.mark.parametrize(
    "entry",
    [
        {**INT8, "format": "int4"},
        {**INT8, "format": None},
        {**INT8, "format": "low_rank"},
        {**INT8, "in_features": 0},
        {**INT8, "in_features": -9},
        {**INT8, "out_features": "7"},
        {**INT8, "out_features": 7.0},
        {**INT8, "out_features": True},
        {**INT8, "bias": 0},
        {**INT8, "granularity": "per_group"},
        {**LOW_RANK, "rank": 0},
        {**LOW_RANK, "rank": -3},
        {**LOW_RANK, "rank": None},
        {**EMBEDDING, "num_embeddings": 0},
        {**EMBEDDING, "embed_scale": 0.0},
        {**EMBEDDING, "embed_scale": -1.0},
        {**EMBEDDING, "embed_scale": float("nan")},
        {**EMBEDDING, "embed_scale": float("inf")},
        {**EMBEDDING, "padding_idx": "0"},
        {"format": "attention", "num_heads": 0},
        {},
        [],
        None,
        "int8",
    ],
    ids=str,
)
def test_an_entry_that_is_not_well_formed_is_refused(entry):
    with pytest.raises(ValidationError):
        SPECS.validate_python({"x": entry})
