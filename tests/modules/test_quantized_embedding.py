import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

from spqlm.modules.quantized_embedding import QuantizedEmbedding

IDS = torch.tensor([[0, 3, 3], [10, 1, 7]])
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def embedding(padding_idx: int | None = None) -> nn.Embedding:
    torch.manual_seed(0)
    return nn.Embedding(11, 6, padding_idx=padding_idx)


def exact(table: QuantizedEmbedding) -> Tensor:
    return table.codes.double() * table.scale.double()[:, None]


@pytest.fixture(params=["per_channel", "per_tensor"])
def granularity(request) -> str:
    return request.param


@pytest.mark.parametrize("dtype", DTYPES)
def test_lookup_equals_indexing_the_dequantised_table(granularity, dtype):
    table = QuantizedEmbedding.from_embedding(embedding().to(dtype), granularity)
    assert table.scale.shape == ((11,) if granularity == "per_channel" else (1,))
    rows = table(IDS)
    assert rows.dtype == table.scale.dtype == dtype
    assert torch.equal(rows, exact(table)[IDS].to(dtype))
    assert torch.equal(table(IDS[0, 0]), exact(table)[0].to(dtype))


def test_rows_are_within_half_a_step_of_the_dense_ones(granularity):
    dense = embedding()
    table = QuantizedEmbedding.from_embedding(dense, granularity)
    error = (exact(table) - dense.weight.double()).abs()
    assert bool((error <= table.scale.double()[:, None] / 2 * (1 + 1e-4)).all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_cast_keeps_exactly_the_same_rows(granularity, dtype):
    table = QuantizedEmbedding.from_embedding(embedding(), granularity)
    weights = exact(table)
    table.to(dtype)
    assert table.codes.dtype == torch.int8
    assert torch.equal(exact(table), weights)
    assert torch.equal(table.float()(IDS), weights[IDS].float())


def test_only_codes_and_scale_are_held_and_neither_is_trained(granularity):
    table = QuantizedEmbedding.from_embedding(embedding(), granularity)
    assert set(table.state_dict()) == {"codes", "scale"}
    assert not any(parameter.requires_grad for parameter in table.parameters())
    assert not hasattr(table, "weight")


def test_padding_row_is_kept_as_it_was(granularity):
    table = QuantizedEmbedding.from_embedding(embedding(padding_idx=3), granularity)
    assert table.padding_idx == 3
    assert torch.equal(table(torch.tensor(3)), torch.zeros(6))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_factor_of_gemma_is_applied_as_the_dense_table_does(granularity, dtype):
    torch.manual_seed(0)
    factor = 640**0.5  # not exact in half precision
    dense = Gemma3TextScaledWordEmbedding(11, 6, padding_idx=0, embed_scale=factor).to(dtype)
    table = QuantizedEmbedding.from_embedding(dense, granularity)
    assert table.embed_scale == factor
    with torch.no_grad():
        dense.weight.copy_(exact(table))
    rows = table(IDS)
    assert rows.dtype == dtype
    assert torch.equal(rows, dense(IDS))


def test_an_empty_table_takes_the_state_of_a_full_one(granularity):
    full = QuantizedEmbedding.from_embedding(embedding(), granularity).bfloat16()
    empty = QuantizedEmbedding(11, 6, granularity=granularity, dtype=torch.bfloat16)
    empty.load_state_dict(full.state_dict(), strict=True)
    assert torch.equal(empty(IDS), full(IDS))


def test_repr_says_what_the_table_is(granularity):
    table = QuantizedEmbedding.from_embedding(embedding(), granularity)
    assert repr(table) == f"QuantizedEmbedding(11, 6, int8, {granularity})"
