import json

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

from spqlm.checkpoint.spec import SPECS, spec_of
from spqlm.modules.int4_embedding import Int4Embedding
from spqlm.modules.ops import module_bytes
from spqlm.numerics import integer

IDS = torch.tensor([[0, 3, 3], [10, 1, 7]])
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ROWS, COLUMNS = 11, 64


def embedding(padding_idx: int | None = None) -> nn.Embedding:
    torch.manual_seed(0)
    return nn.Embedding(ROWS, COLUMNS, padding_idx=padding_idx)


def make(dense: nn.Embedding, group_size: int = 32) -> Int4Embedding:
    weight = dense.weight.detach()
    scale = integer.search_group_scale(weight, None, group_size)
    codes = integer.quantize_groups(weight, scale)
    return Int4Embedding.from_codes(dense, codes, scale.to(weight.dtype))


def exact(table: Int4Embedding) -> Tensor:
    spread = table.scale.double().repeat_interleave(table.group_size, 1)
    return integer.unpack_int4(table.codes).double() * spread


@pytest.fixture(params=[32, 64], ids="g{}".format)
def group_size(request) -> int:
    return request.param


@pytest.mark.parametrize("dtype", DTYPES)
def test_lookup_equals_indexing_the_dequantised_table(group_size, dtype):
    table = make(embedding().to(dtype), group_size)
    assert (table.num_embeddings, table.embedding_dim) == (ROWS, COLUMNS)
    assert table.group_size == group_size
    assert table.scale.shape == (ROWS, COLUMNS // group_size)
    rows = table(IDS)
    assert rows.dtype == table.scale.dtype == dtype
    assert torch.equal(rows, exact(table)[IDS].to(dtype))


@pytest.mark.parametrize("shape", [(), (1,), (2, 0), (0,), (2, 1, 3)])
def test_ids_of_any_shape_are_looked_up(shape):
    ids = torch.randint(0, ROWS, shape, generator=torch.Generator().manual_seed(0))
    table = make(embedding())
    rows = table(ids)
    assert rows.shape == (*shape, COLUMNS)
    assert torch.equal(rows, exact(table)[ids].float())


def test_rows_are_near_the_dense_ones(group_size):
    dense = embedding()
    off = (exact(make(dense, group_size)) - dense.weight.detach().double()).square().mean().sqrt()
    assert float(off) < 0.15


@pytest.mark.parametrize("dtype", DTYPES)
def test_casts_keep_exactly_the_same_rows(group_size, dtype):
    table = make(embedding(), group_size)
    weights = exact(table)
    table.to(dtype)
    assert table.codes.dtype == torch.uint8
    assert table.scale.dtype == dtype
    assert torch.equal(exact(table), weights)
    assert torch.equal(table.float()(IDS), weights[IDS].float())


def test_no_float_copy_is_held_and_nothing_is_trained(group_size):
    table = make(embedding(), group_size)
    table(IDS)
    assert set(table.state_dict()) == {"codes", "scale"}
    assert set(dict(table.named_parameters())) == {"codes", "scale"}
    assert {k for k, v in vars(table).items() if isinstance(v, Tensor)} == set()
    assert not any(parameter.requires_grad for parameter in table.parameters())
    assert not hasattr(table, "weight")
    assert module_bytes(table) == ROWS * COLUMNS // 2 + 4 * ROWS * COLUMNS // group_size


def test_only_the_rows_asked_for_are_dequantised(monkeypatch):
    table, seen = make(embedding()), []
    plain = integer.dequantize

    def watched(codes: Tensor, scale: Tensor) -> Tensor:
        seen.append(len(codes))
        return plain(codes, scale)

    monkeypatch.setattr(integer, "dequantize", watched)
    table(IDS[:1])
    assert seen == [3]


def test_the_padding_row_is_kept_as_it_was(group_size):
    table = make(embedding(padding_idx=3), group_size)
    assert table.padding_idx == 3
    assert torch.equal(table(torch.tensor(3)), torch.zeros(COLUMNS))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_factor_of_gemma_is_applied_as_the_dense_table_does(group_size, dtype):
    torch.manual_seed(0)
    factor = 640**0.5  # not exact in half precision
    dense = Gemma3TextScaledWordEmbedding(ROWS, COLUMNS, padding_idx=0, embed_scale=factor)
    dense = dense.to(dtype)
    table = make(dense, group_size)
    assert table.embed_scale == factor
    with torch.no_grad():
        dense.weight.copy_(exact(table))
    rows = table(IDS)
    assert rows.dtype == dtype
    assert torch.equal(rows, dense(IDS))


@pytest.mark.parametrize("padding_idx", [None, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_rebuilt_from_the_json_of_its_spec(group_size, padding_idx, dtype):
    table = make(embedding(padding_idx), group_size).to(dtype)
    table.embed_scale = 640**0.5
    stored = json.dumps({"x": spec_of(table).model_dump()})
    spec = SPECS.validate_json(stored)["x"]
    assert spec == SPECS.validate_python(json.loads(stored))["x"] == spec_of(table)
    rebuilt = spec.build(dtype)
    assert spec_of(rebuilt) == spec
    rebuilt.load_state_dict(table.state_dict(), strict=True)
    assert torch.equal(rebuilt(IDS), table(IDS))


STATED = {
    "format": "int4_embedding",
    "num_embeddings": ROWS,
    "embedding_dim": COLUMNS,
    "group_size": 32,
    "embed_scale": 1.0,
    "padding_idx": None,
}


@pytest.mark.parametrize(
    "change",
    [
        {"group_size": 48},
        {"group_size": 128},
        {"group_size": 0},
        {"group_size": "32"},
        {"embedding_dim": 40},
        {"embed_scale": 0.0},
        {"embed_scale": float("nan")},
        {"granularity": "per_channel"},
    ],
    ids=str,
)
def test_a_spec_that_cannot_be_is_refused(change):
    assert SPECS.validate_python({"x": STATED})
    with pytest.raises(ValidationError):
        SPECS.validate_python({"x": STATED | change})


def test_repr_says_what_the_table_is():
    assert repr(make(embedding())) == "Int4Embedding(11, 64, int4, group_size=32)"
