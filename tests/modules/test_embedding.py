import pytest
import torch
from tests import stored_weights
from tests.stored_weights import definition
from torch import Tensor, nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

from spqlm.formats import StoredWeight, group_sparse
from spqlm.formats.int8 import Int8
from spqlm.modules.embedding import CompressedEmbedding
from spqlm.modules.ops import module_bytes, with_weight
from spqlm.numerics import integer

IDS = torch.tensor([[0, 3, 3], [10, 1, 7]])
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ROWS, COLUMNS = 11, 64


def embedding(padding_idx: int | None = None) -> nn.Embedding:
    torch.manual_seed(0)
    return nn.Embedding(ROWS, COLUMNS, padding_idx=padding_idx)


def int4(weight: Tensor, group_size: int) -> StoredWeight:
    scale = integer.search_group_scale(weight, None, group_size)
    return stored_weights.int4(integer.quantize_groups(weight, scale), scale)


WEIGHTS = {
    "per_channel": lambda weight: Int8().nearest(weight),
    "per_tensor": lambda weight: Int8(granularity="per_tensor").nearest(weight),
    "g32": lambda weight: int4(weight, 32),
    "g64": lambda weight: int4(weight, 64),
}
SCALES = {"per_channel": (ROWS,), "per_tensor": (1,), "g32": (ROWS, 2), "g64": (ROWS, 1)}


@pytest.fixture(params=WEIGHTS)
def kind(request) -> str:
    return request.param


def make(dense: nn.Embedding, kind: str) -> CompressedEmbedding:
    return with_weight(dense, WEIGHTS[kind](dense.weight.detach()))


def exact(table: CompressedEmbedding) -> Tensor:
    return definition(table.stored_weight.detach())


@pytest.mark.parametrize("dtype", DTYPES)
def test_lookup_equals_indexing_the_dequantised_table(kind, dtype):
    table = make(embedding().to(dtype), kind)
    assert (table.num_embeddings, table.embedding_dim) == (ROWS, COLUMNS)
    assert table.format == WEIGHTS[kind](torch.ones(ROWS, COLUMNS)).format
    assert table.scale.shape == SCALES[kind]
    rows = table(IDS)
    assert rows.dtype == table.scale.dtype == dtype
    assert torch.equal(rows, exact(table)[IDS].to(dtype))
    assert torch.equal(table(IDS[0, 0]), exact(table)[0].to(dtype))


@pytest.mark.parametrize("shape", [(), (1,), (2, 0), (0,), (2, 1, 3)])
def test_ids_of_any_shape_are_looked_up(kind, shape):
    ids = torch.randint(0, ROWS, shape, generator=torch.Generator().manual_seed(0))
    table = make(embedding(), kind)
    rows = table(ids)
    assert rows.shape == (*shape, COLUMNS)
    assert torch.equal(rows, exact(table)[ids].float())


@pytest.mark.parametrize("kind", ["per_channel", "per_tensor"])
def test_rows_are_within_half_a_step_of_the_dense_ones(kind):
    dense = embedding()
    table = make(dense, kind)
    error = (exact(table) - dense.weight.double()).abs()
    assert bool((error <= table.scale.double()[:, None] / 2 * (1 + 1e-4)).all())


@pytest.mark.parametrize("kind", ["g32", "g64"])
def test_rows_are_near_the_dense_ones(kind):
    dense = embedding()
    off = (exact(make(dense, kind)) - dense.weight.detach().double()).square().mean().sqrt()
    assert float(off) < 0.15


@pytest.mark.parametrize("dtype", DTYPES)
def test_casts_keep_exactly_the_same_rows(kind, dtype):
    table = make(embedding(), kind)
    weights, stored = exact(table), table.codes.dtype
    table.to(dtype)
    assert table.codes.dtype == stored == (torch.uint8 if kind.startswith("g") else torch.int8)
    assert table.scale.dtype == dtype
    assert torch.equal(exact(table), weights)
    assert torch.equal(table.float()(IDS), weights[IDS].float())


def test_no_float_copy_is_held_and_nothing_is_trained(kind):
    table = make(embedding(), kind)
    table(IDS)
    assert set(table.state_dict()) == {"codes", "scale"}
    assert set(dict(table.named_parameters())) == {"codes", "scale"}
    assert {k for k, v in vars(table).items() if isinstance(v, Tensor)} == set()
    assert not any(parameter.requires_grad for parameter in table.parameters())
    assert not hasattr(table, "weight")
    assert module_bytes(table) == table.format.stored_bytes(ROWS, COLUMNS, 4)


def test_only_the_rows_asked_for_are_dequantised(kind, monkeypatch):
    table, seen = make(embedding(), kind), []
    name = "dequantize_groups" if kind.startswith("g") else "dequantize"
    plain = getattr(integer, name)

    def watched(codes: Tensor, scale: Tensor) -> Tensor:
        seen.append(len(codes))
        return plain(codes, scale)

    monkeypatch.setattr(integer, name, watched)
    table(IDS[:1])
    assert seen == [3]


def test_the_padding_row_is_kept_as_it_was(kind):
    table = make(embedding(padding_idx=3), kind)
    assert table.padding_idx == 3
    assert torch.equal(table(torch.tensor(3)), torch.zeros(COLUMNS))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_factor_of_gemma_is_applied_as_the_dense_table_does(kind, dtype):
    torch.manual_seed(0)
    factor = 640**0.5  # not exact in half precision
    dense = Gemma3TextScaledWordEmbedding(ROWS, COLUMNS, padding_idx=0, embed_scale=factor)
    dense = dense.to(dtype)
    table = make(dense, kind)
    assert table.embed_scale == factor
    with torch.no_grad():
        dense.weight.copy_(exact(table))
    rows = table(IDS)
    assert rows.dtype == dtype
    assert torch.equal(rows, dense(IDS))


def test_an_empty_table_takes_the_state_of_a_full_one(kind):
    full = make(embedding(), kind).bfloat16()
    empty = CompressedEmbedding(full.format.empty(ROWS, COLUMNS, torch.bfloat16))
    empty.load_state_dict(full.state_dict(), strict=True)
    assert torch.equal(empty(IDS), full(IDS))


def test_a_table_of_stored_groups_is_looked_up():
    scale, keep = stored_weights.random(ROWS, 4), torch.arange(44).view(ROWS, 4) % 3 > 0
    weight = group_sparse.pack(stored_weights.random_codes(ROWS, 64, 4), scale, None, keep, 4)
    table = CompressedEmbedding(weight, embed_scale=2.0)
    assert torch.equal(table(IDS), 2 * definition(weight)[IDS].float())


WORDS = {
    "per_channel": "int8 per_channel",
    "per_tensor": "int8 per_tensor",
    "g32": "int4 group 32",
    "g64": "int4 group 64",
}


def test_repr_says_what_the_table_is(kind):
    assert repr(make(embedding(), kind)) == f"CompressedEmbedding(11, 64, {WORDS[kind]})"
