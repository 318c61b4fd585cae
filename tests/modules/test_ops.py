import pytest
import torch
from torch import Tensor, nn

from spqlm.modules.low_rank_linear import LowRankLinear
from spqlm.modules.ops import (
    dense_weight,
    linear_from,
    module_bytes,
    select_inputs,
    select_outputs,
)
from spqlm.modules.quantized_embedding import QuantizedEmbedding
from spqlm.modules.quantized_linear import QuantizedLinear

OUT, IN, RANK = 7, 9, 4


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def low_rank(bias: Tensor | None, granularity: str | None = None) -> LowRankLinear:
    module = LowRankLinear.from_factors(random(OUT, RANK, seed=1), random(RANK, IN, seed=2), bias)
    if granularity is not None:
        module.right = QuantizedLinear.from_weight(module.right.weight.detach(), None, granularity)
        module.left = QuantizedLinear.from_weight(module.left.weight.detach(), bias, granularity)
    return module


KINDS = {
    "dense": lambda bias: linear_from(random(OUT, IN), bias),
    "per_channel": lambda bias: QuantizedLinear.from_weight(random(OUT, IN), bias, "per_channel"),
    "per_tensor": lambda bias: QuantizedLinear.from_weight(random(OUT, IN), bias, "per_tensor"),
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


def test_dense_weight_is_what_the_layer_applies(layer, bias):
    x = random(5, IN, seed=4)
    expected = nn.functional.linear(x, dense_weight(layer), bias)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)
    assert not dense_weight(layer).requires_grad


@pytest.mark.parametrize("index", INDICES)
def test_selecting_outputs_takes_rows_of_the_weight_and_the_bias(layer, bias, index):
    index = torch.tensor(index)
    selected = select_outputs(layer, index)
    assert type(selected) is type(layer)
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
    selected = select_inputs(layer, index)
    assert type(selected) is type(layer)
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
    select_outputs(layer, torch.tensor([0, 1]))
    select_inputs(layer, torch.tensor([0, 1]))
    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("operation", [dense_weight, select_outputs, select_inputs])
@pytest.mark.parametrize(
    "module",
    [
        nn.LayerNorm(3),
        nn.Embedding(3, 2),
        QuantizedEmbedding.from_embedding(nn.Embedding(3, 2), "per_tensor"),
    ],
)
def test_what_is_not_a_linear_layer_is_refused_by_name(operation, module):
    arguments = [] if operation is dense_weight else [torch.tensor([0])]
    with pytest.raises(TypeError, match=f"{type(module).__name__} is not a linear layer"):
        operation(module, *arguments)


def test_linear_from_holds_the_very_tensors_and_trains_nothing():
    weight, bias = random(3, 2), random(3)
    layer = linear_from(weight, bias)
    assert layer.weight.data_ptr() == weight.data_ptr()
    assert layer.bias.data_ptr() == bias.data_ptr()
    assert (layer.in_features, layer.out_features) == (2, 3)
    assert not any(parameter.requires_grad for parameter in layer.parameters())
    assert linear_from(weight, None).bias is None


def test_module_bytes_are_those_of_the_tensors_in_their_dtypes():
    bias = random(OUT).to(torch.bfloat16)
    weight = random(OUT, IN).to(torch.bfloat16)
    assert module_bytes(linear_from(weight, bias)) == 2 * (OUT * IN + OUT)
    quantized = QuantizedLinear.from_weight(weight, bias, "per_channel")
    assert module_bytes(quantized) == OUT * IN + 2 * OUT + 2 * OUT
    assert module_bytes(QuantizedLinear.from_weight(weight, None, "per_tensor")) == OUT * IN + 2
    left, right = weight[:, :RANK].clone(), weight[:RANK].clone()
    factors = LowRankLinear.from_factors(left, right, bias)
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
