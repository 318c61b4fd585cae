import pytest
import torch
from tests.stored_weights import random
from torch import Tensor, nn

from spqlm.formats.int8 import Int8
from spqlm.formats.low_rank import of_factors
from spqlm.modules.embedding import CompressedEmbedding
from spqlm.modules.linear import CompressedLinear
from spqlm.modules.low_rank_linear import LowRankLinear
from spqlm.modules.ops import (
    dense_weight,
    linear_from,
    linear_of,
    module_bytes,
    select,
    stored_weight,
    with_weight,
)

OUT, IN, RANK = 7, 9, 4


def int8(weight: Tensor, bias: Tensor | None, granularity: str) -> nn.Module:
    weight = Int8(granularity=granularity).nearest(weight).cast(weight.dtype)
    return CompressedLinear(weight, bias)


def low_rank(bias: Tensor | None, granularity: str | None = None) -> LowRankLinear:
    module = linear_of(of_factors(random(OUT, RANK, seed=1), random(RANK, IN, seed=2)), bias)
    if granularity is not None:
        module.right = int8(module.right.weight.detach(), None, granularity)
        module.left = int8(module.left.weight.detach(), bias, granularity)
    return module


KINDS = {
    "dense": lambda bias: linear_from(random(OUT, IN), bias),
    "per_channel": lambda bias: int8(random(OUT, IN), bias, "per_channel"),
    "per_tensor": lambda bias: int8(random(OUT, IN), bias, "per_tensor"),
    "low_rank": low_rank,
    "low_rank_per_channel": lambda bias: low_rank(bias, "per_channel"),
    "low_rank_per_tensor": lambda bias: low_rank(bias, "per_tensor"),
}


@pytest.fixture(params=[True, False], ids=["bias", "no_bias"])
def bias(request) -> Tensor | None:
    return random(OUT, seed=3) if request.param else None


@pytest.fixture(params=KINDS)
def layer(request, bias) -> nn.Module:
    return KINDS[request.param](bias)


INDICES = [[0, 2, 5], [6], list(range(7))]


def check_state(module: nn.Module) -> None:
    for tensor in module.state_dict().values():
        assert tensor.is_contiguous()
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def kind_after(layer: nn.Module, kept: int) -> type[nn.Module]:
    """A low-rank layer that is cut below its rank is multiplied out."""
    return nn.Linear if kept < getattr(layer, "rank", 0) else type(layer)


def test_dense_weight_is_what_the_layer_applies(layer, bias):
    x = random(5, IN, seed=4)
    expected = nn.functional.linear(x, dense_weight(layer), bias)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)
    assert not dense_weight(layer).requires_grad


@pytest.mark.parametrize("index", INDICES)
def test_selecting_outputs_takes_rows_of_the_weight_and_the_bias(layer, bias, index):
    index = torch.tensor(index)
    selected = select(layer, "output", index)
    assert type(selected) is kind_after(layer, len(index))
    assert (selected.in_features, selected.out_features) == (IN, len(index))
    torch.testing.assert_close(
        dense_weight(selected), dense_weight(layer)[index], rtol=1e-5, atol=1e-6
    )
    assert (selected.bias is None) == (bias is None)
    if bias is not None:
        assert torch.equal(selected.bias, bias[index])
    x = random(2, 3, IN, seed=4)
    torch.testing.assert_close(selected(x), layer(x)[..., index], rtol=1e-4, atol=1e-5)
    check_state(selected)


@pytest.mark.parametrize("index", [[1, 3, 8], [4], list(range(9))])
def test_selecting_inputs_takes_columns_of_the_weight_and_keeps_the_bias(layer, bias, index):
    index = torch.tensor(index)
    selected = select(layer, "input", index)
    assert type(selected) is kind_after(layer, len(index))
    assert (selected.in_features, selected.out_features) == (len(index), OUT)
    torch.testing.assert_close(
        dense_weight(selected), dense_weight(layer)[:, index], rtol=1e-5, atol=1e-6
    )
    assert (selected.bias is None) == (bias is None)
    if bias is not None:
        assert torch.equal(selected.bias, bias)
    x = torch.zeros(2, IN)
    x[:, index] = random(2, len(index), seed=4)
    torch.testing.assert_close(selected(x[:, index]), layer(x), rtol=1e-4, atol=1e-5)
    check_state(selected)


def test_selection_leaves_the_layer_itself_alone(layer):
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    select(layer, "output", torch.tensor([0, 1]))
    select(layer, "input", torch.tensor([0, 1]))
    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize(
    "operation",
    [
        stored_weight,
        dense_weight,
        lambda module: select(module, "output", torch.tensor([0])),
        lambda module: select(module, "input", torch.tensor([0])),
    ],
    ids=["stored_weight", "dense_weight", "outputs", "inputs"],
)
@pytest.mark.parametrize("module", [nn.LayerNorm(3), nn.ReLU()])
def test_what_has_no_matrix_is_refused_by_name(operation, module):
    with pytest.raises(TypeError, match=f"{type(module).__name__} is not a linear layer"):
        operation(module)


@pytest.mark.parametrize("side", ["input", "output"])
@pytest.mark.parametrize(
    "module",
    [
        nn.Embedding(3, 2),
        CompressedEmbedding(Int8(granularity="per_tensor").nearest(torch.ones(3, 2))),
    ],
    ids=["dense", "int8"],
)
def test_an_embedding_has_no_features_to_select(side, module):
    with pytest.raises(TypeError, match=f"{type(module).__name__} is not a linear layer"):
        select(module, side, torch.tensor([0]))


def test_a_weight_put_in_place_of_another_has_the_layers_own_dtype_and_bias():
    for dtype in (torch.float32, torch.bfloat16):
        layer = linear_from(random(OUT, IN).to(dtype), random(OUT).to(dtype))
        changed = with_weight(layer, Int8().nearest(random(OUT, IN)))
        assert changed.scale.dtype == dtype
        assert torch.equal(changed.bias, layer.bias)
        table = with_weight(nn.Embedding(OUT, IN, dtype=dtype), Int8().nearest(random(OUT, IN)))
        assert isinstance(table, CompressedEmbedding)
        assert table.scale.dtype == dtype


def test_linear_from_holds_the_very_tensors_and_trains_as_a_loaded_layer():
    weight, bias = random(3, 2), random(3)
    layer = linear_from(weight, bias)
    assert layer.weight.data_ptr() == weight.data_ptr()
    assert layer.bias.data_ptr() == bias.data_ptr()
    assert (layer.in_features, layer.out_features) == (2, 3)
    assert all(parameter.requires_grad for parameter in layer.parameters())
    assert linear_from(weight, None).bias is None
    frozen = nn.Parameter(weight, requires_grad=False)
    assert linear_from(frozen, None).weight is frozen and not frozen.requires_grad


def test_module_bytes_are_those_of_the_tensors_in_their_dtypes():
    bias = random(OUT).to(torch.bfloat16)
    weight = random(OUT, IN).to(torch.bfloat16)
    assert module_bytes(linear_from(weight, bias)) == 2 * (OUT * IN + OUT)
    quantized = int8(weight, bias, "per_channel")
    assert module_bytes(quantized) == OUT * IN + 2 * OUT + 2 * OUT
    assert module_bytes(int8(weight, None, "per_tensor")) == OUT * IN + 2
    left, right = weight[:, :RANK].clone(), weight[:RANK].clone()
    factors = linear_of(of_factors(left, right), bias)
    assert module_bytes(low_rank(None)) == 4 * RANK * (OUT + IN)
    assert module_bytes(factors) == 2 * (RANK * (OUT + IN) + OUT)


def test_module_bytes_count_a_shared_tensor_once_and_every_buffer():
    module = nn.Module()
    module.a = nn.Linear(3, 2, bias=False)
    module.b = nn.Linear(3, 2, bias=False)
    module.b.weight = module.a.weight
    module.register_buffer("scratch", torch.zeros(10), persistent=False)
    module.register_buffer("kept", torch.zeros(5, dtype=torch.int8), persistent=True)
    assert module_bytes(module) == 4 * (6 + 10) + 5
