import json

import pytest
import torch
from tests import stored_weights
from torch import Tensor, nn

from spqlm import formats
from spqlm.checkpoint.spec import HeadCount, parse_spec, spec_of
from spqlm.errors import CheckpointError
from spqlm.formats import group_sparse
from spqlm.formats.int4 import Int4
from spqlm.formats.int8 import Int8
from spqlm.formats.low_rank import of_factors
from spqlm.formats.nl3 import Nl3
from spqlm.modules.embedding import CompressedEmbedding
from spqlm.modules.linear import CompressedLinear
from spqlm.modules.ops import linear_of
from spqlm.numerics.metric import Metric


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def codes(rows: int, columns: int, largest: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (rows, columns)
    return torch.randint(-largest, largest + 1, shape, generator=generator, dtype=torch.int8)


def int8(granularity: str, bias: Tensor | None) -> nn.Module:
    return CompressedLinear(Int8(granularity=granularity).nearest(random(7, 9)), bias)


def int4(group_size: int, bias: Tensor | None = None) -> nn.Module:
    scale = random(6, 128 // group_size)
    return CompressedLinear(stored_weights.int4(codes(6, 128, 7), scale), bias)


def sparse(bits: int, zero: bool, bias: Tensor | None = None) -> nn.Module:
    scale, keep = random(6, 8), torch.arange(48).view(6, 8) % 3 > 0
    zeros = scale / 2 if zero else None
    return CompressedLinear(group_sparse.pack(codes(6, 128, 7), scale, zeros, keep, bits), bias)


def levels(scales: str, bias: Tensor | None) -> nn.Module:
    metric = Metric([(torch.eye(128), torch.ones(6))])
    form = Nl3(group_size=32, scales=scales)
    return CompressedLinear(form.fit(random(6, 128), metric, "nearest"), bias)


def factors(bias: Tensor | None) -> nn.Module:
    return linear_of(of_factors(random(7, 3), random(3, 9)), bias)


def table(granularity: str, **options) -> CompressedEmbedding:
    return CompressedEmbedding(Int8(granularity=granularity).nearest(random(11, 6)), **options)


def table4(group_size: int, **options) -> CompressedEmbedding:
    weight = stored_weights.int4(codes(11, 64, 7), random(11, 64 // group_size))
    return CompressedEmbedding(weight, **options)


MODULES = {
    "linear": lambda: nn.Linear(9, 7),
    "linear_no_bias": lambda: nn.Linear(9, 7, bias=False),
    "int8_channel": lambda: int8("per_channel", random(7)),
    "int8_tensor": lambda: int8("per_tensor", None),
    "int4_g32": lambda: int4(32, random(6)),
    "int4_g64_no_bias": lambda: int4(64),
    "int4_g128": lambda: int4(128, random(6)),
    "sparse_4": lambda: sparse(4, zero=False, bias=random(6)),
    "sparse_4_zeros": lambda: sparse(4, zero=True),
    "sparse_8_zeros": lambda: sparse(8, zero=True),
    "levels": lambda: levels("float", random(6)),
    "levels_scales_in_int8": lambda: levels("int8", None),
    "low_rank": lambda: factors(random(7)),
    "low_rank_no_bias": lambda: factors(None),
    "embedding_channel": lambda: table("per_channel"),
    "embedding_tensor": lambda: table("per_tensor", embed_scale=640**0.5, padding_idx=3),
    "embedding_whole_factor": lambda: table("per_channel", embed_scale=2.0, padding_idx=0),
    "embedding_g32": lambda: table4(32),
    "embedding_g64": lambda: table4(64, embed_scale=640**0.5, padding_idx=3),
}


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_module_is_rebuilt_from_the_json_of_its_spec(kind, dtype):
    module = MODULES[kind]().to(dtype)
    spec = spec_of(module)
    read = parse_spec("x", json.loads(json.dumps(spec.dump())))
    assert read == spec
    rebuilt = read.build(dtype)
    assert type(rebuilt) is type(module)
    assert spec_of(rebuilt) == spec
    expected = {name: (t.shape, t.dtype) for name, t in module.state_dict().items()}
    assert {name: (t.shape, t.dtype) for name, t in rebuilt.state_dict().items()} == expected


@torch.no_grad()
@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_rebuilt_module_computes_the_same_once_it_has_the_values(kind, dtype):
    module = MODULES[kind]().to(dtype)
    rebuilt = spec_of(module).build(dtype)
    rebuilt.load_state_dict(module.state_dict(), strict=True)
    if isinstance(module, CompressedEmbedding):
        inputs = torch.tensor([[1, 10]])
    else:
        inputs = random(2, module.in_features).to(dtype)
    assert torch.equal(rebuilt(inputs), module(inputs))


def test_ordinary_modules_have_no_spec():
    for module in (nn.LayerNorm(3), nn.Embedding(3, 2), nn.ModuleList(), nn.ReLU()):
        assert spec_of(module) is None


def test_the_head_count_of_an_attention_block_is_stated():
    stored = json.loads(json.dumps(HeadCount(num_heads=3).dump()))
    assert parse_spec("x", stored) == HeadCount(num_heads=3)


INT8 = {
    "format": "int8",
    "in_features": 9,
    "out_features": 7,
    "bias": False,
    "granularity": "per_channel",
}
LOW_RANK = {"format": "low_rank", "in_features": 9, "out_features": 7, "bias": False, "rank": 3}
INT4 = {"format": "int4", "in_features": 128, "out_features": 6, "bias": False, "group_size": 32}
NL3 = INT4 | {"format": "nl3"}
SPARSE = {
    "format": "group_sparse",
    "in_features": 128,
    "out_features": 6,
    "bias": False,
    "group_size": 16,
    "bits": 4,
    "kept": 30,
    "zero": False,
}
EMBEDDING = {
    "format": "int8_embedding",
    "num_embeddings": 11,
    "embedding_dim": 6,
    "granularity": "per_channel",
    "embed_scale": 1.0,
    "padding_idx": None,
}


EMBEDDING4 = {
    "format": "int4_embedding",
    "num_embeddings": 11,
    "embedding_dim": 64,
    "group_size": 32,
    "embed_scale": 1.0,
    "padding_idx": None,
}


@pytest.mark.parametrize(
    "entry",
    [INT8, INT4, NL3, SPARSE, LOW_RANK, EMBEDDING, EMBEDDING4],
    ids=lambda entry: entry["format"],
)
def test_every_field_is_needed_and_no_other_is_accepted(entry):
    parse_spec("x", entry)
    for field in entry:
        with pytest.raises(CheckpointError, match=r"'x|x\."):
            parse_spec("x", {key: entry[key] for key in entry if key != field})
    with pytest.raises(CheckpointError, match="extra inputs"):
        parse_spec("x", {**entry, "step": 32})


def test_a_field_that_came_later_may_be_missing_and_is_left_out_where_it_says_nothing():
    assert parse_spec("x", NL3).form == Nl3(group_size=32)
    assert spec_of(levels("float", None)).dump() == NL3
    shared = {**NL3, "scales": "int8"}
    assert parse_spec("x", shared).form == Nl3(group_size=32, scales="int8")
    assert spec_of(levels("int8", None)).dump() == shared


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
        {**INT8, "group_size": 32},
        {**INT4, "group_size": 48},
        {**INT4, "group_size": 256},
        {**INT4, "group_size": 1},
        {**INT4, "group_size": 0},
        {**INT4, "group_size": -32},
        {**INT4, "group_size": "32"},
        {**INT4, "group_size": 32.0},
        {**INT4, "group_size": None},
        {**INT4, "group_size": True},
        {**INT4, "in_features": 100},
        {**INT4, "in_features": 33, "group_size": 33},
        {**INT4, "granularity": "per_channel"},
        {**LOW_RANK, "group_size": 32},
        {**LOW_RANK, "factor": None},
        {**LOW_RANK, "factor": {"format": "int8", "granularity": "per_channel"}},
        {**EMBEDDING, "group_size": 32},
        {**EMBEDDING4, "group_size": 48},
        {**EMBEDDING4, "group_size": 128},
        {**EMBEDDING4, "group_size": 0},
        {**EMBEDDING4, "group_size": "32"},
        {**EMBEDDING4, "embedding_dim": 40},
        {**EMBEDDING4, "embed_scale": 0.0},
        {**EMBEDDING4, "embed_scale": float("nan")},
        {**EMBEDDING4, "granularity": "per_channel"},
        {"format": "attention", "num_heads": 0},
        {},
        [],
        None,
        "int8",
    ],
    ids=str,
)
def test_an_entry_that_is_not_well_formed_is_refused(entry):
    with pytest.raises(CheckpointError, match=r"'x|x\."):
        parse_spec("x", entry)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({**INT4, "group_size": 48}, "48 must divide the width 128"),
        ({**SPARSE, "group_size": 24}, "24 must divide the width 128"),
        ({**SPARSE, "kept": 49}, "keeps 49 groups, more than the weight has"),
        ({**SPARSE, "kept": 10**6}, "more than"),
        ({**SPARSE, "kept": 0}, "keeps no group"),
        ({**SPARSE, "bits": 9}, "should be less than or equal to 8"),
        ({**LOW_RANK, "rank": 8}, "rank 8 is more than a weight of 7 × 9 has"),
        ({**LOW_RANK, "rank": 2**40}, "rank 1099511627776 is more than"),
    ],
    ids=str,
)
def test_a_shape_that_the_format_does_not_fit_is_refused_with_the_reason(entry, words):
    with pytest.raises(CheckpointError, match=words):
        parse_spec("x", entry)


@pytest.mark.parametrize(
    ("stated", "nearest"),
    [("int9", "int"), ("int88", "int8"), ("grp_sparse", "group_sparse"), ("lowrank", "low_rank")],
)
@pytest.mark.parametrize("suffix", ["", "_embedding"])
def test_an_unknown_format_is_refused_with_the_nearest_and_why_it_may_be_unknown(
    stated, nearest, suffix
):
    message = rf"'model\.x': unknown format '{stated}', the nearest is '{nearest}.*newer version"
    with pytest.raises(CheckpointError, match=message):
        parse_spec("model.x", INT8 | {"format": stated + suffix})


@pytest.mark.parametrize("form", [Int8(), Int8(granularity="per_tensor"), Int4(group_size=32)])
def test_an_entry_is_the_description_of_the_format_and_its_place(form):
    layer = CompressedLinear(form.empty(6, 64, torch.float32), None)
    place = {"in_features": 64, "out_features": 6, "bias": False}
    assert spec_of(layer).dump() == place | formats.dump(form)
