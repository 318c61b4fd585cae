import pytest
import torch
from tests import stored_weights
from tests.stored_weights import definition, random, random_codes
from torch import Tensor, nn

from spqlm.formats import StoredWeight, group_sparse
from spqlm.formats.int4 import Int4
from spqlm.formats.int8 import Int8
from spqlm.modules.linear import CompressedLinear
from spqlm.modules.ops import dense_weight, module_bytes, select
from spqlm.numerics import integer

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
OUT, IN, SIZE = 6, 128, 16


def int8(granularity: str) -> StoredWeight:
    return Int8(granularity=granularity).nearest(random(OUT, IN))


def int4(group_size: int) -> StoredWeight:
    weight = random(OUT, IN)
    scale = integer.search_group_scale(weight, None, group_size)
    return stored_weights.int4(integer.quantize_groups(weight, scale), scale)


def sparse(bits: int, zero: bool) -> StoredWeight:
    keep = torch.rand(OUT, IN // SIZE, generator=torch.Generator().manual_seed(0)) < 0.6
    scale = integer.round_scale(random(OUT, IN // SIZE, seed=1) / 4)
    zeros = integer.round_scale(random(OUT, IN // SIZE, seed=2)) if zero else None
    return group_sparse.pack(random_codes(OUT, IN, bits=4), scale, zeros, keep, bits)


WEIGHTS = {
    "per_channel": lambda: int8("per_channel"),
    "per_tensor": lambda: int8("per_tensor"),
    "g32": lambda: int4(32),
    "g64": lambda: int4(64),
    "g128": lambda: int4(128),
    "sparse4": lambda: sparse(4, zero=False),
    "sparse4_zero": lambda: sparse(4, zero=True),
    "sparse8": lambda: sparse(8, zero=False),
    "sparse8_zero": lambda: sparse(8, zero=True),
}


@pytest.fixture(params=WEIGHTS)
def kind(request) -> str:
    return request.param


def make(kind: str, *, bias: bool = True, dtype: torch.dtype = torch.float32) -> CompressedLinear:
    held = random(OUT, seed=3).to(dtype) if bias else None
    return CompressedLinear(WEIGHTS[kind]().cast(dtype), held)


def exact(layer: CompressedLinear) -> Tensor:
    return definition(layer.stored_weight.detach())


@pytest.mark.parametrize("bias", [True, False])
def test_shapes_and_format_come_from_the_weight(kind, bias):
    layer = make(kind, bias=bias)
    assert (layer.in_features, layer.out_features) == (IN, OUT)
    assert layer.format == WEIGHTS[kind]().format
    assert (layer.bias is not None) == bias


@pytest.mark.parametrize(
    ("kind", "codes", "scale"),
    [
        ("per_channel", (OUT, IN), (OUT,)),
        ("per_tensor", (OUT, IN), (1,)),
        ("g32", (OUT, IN // 2), (OUT, IN // 32)),
        ("g64", (OUT, IN // 2), (OUT, IN // 64)),
        ("g128", (OUT, IN // 2), (OUT, IN // 128)),
    ],
)
def test_tensors_have_the_shapes_that_kernels_read(kind, codes, scale):
    layer = make(kind)
    assert layer.codes.dtype == (torch.uint8 if kind.startswith("g") else torch.int8)
    assert layer.codes.shape == codes
    assert layer.scale.shape == scale


def test_it_holds_the_very_tensors(kind):
    weight, bias = WEIGHTS[kind](), random(OUT)
    layer = CompressedLinear(weight, bias)
    for name, given in weight.tensors().items():
        assert getattr(layer, name).data_ptr() == given.data_ptr()
    assert layer.bias.data_ptr() == bias.data_ptr()
    assert CompressedLinear(weight, None).bias is None
    again = CompressedLinear(layer.stored_weight, layer.bias)
    assert all(mine is getattr(layer, name) for name, mine in again.named_parameters())


def test_nothing_but_what_is_stored_is_held(kind):
    layer, weight = make(kind), WEIGHTS[kind]()
    layer(random(2, IN))
    names = {*weight.tensors(), "bias"}
    assert set(layer.state_dict()) == set(dict(layer.named_parameters())) == names
    assert not any(parameter.requires_grad for parameter in layer.parameters())
    assert {k for k, v in vars(layer).items() if isinstance(v, Tensor)} == set()
    assert not isinstance(layer, nn.Linear)
    assert not hasattr(layer, "weight")
    size = weight.format.stored_bytes(OUT, IN, 4)
    assert module_bytes(layer) == size + 4 * OUT
    assert module_bytes(layer.bfloat16()) == weight.format.stored_bytes(OUT, IN, 2) + 2 * OUT


@pytest.mark.parametrize("dtype", DTYPES)
def test_casts_keep_exactly_the_same_weights(kind, dtype):
    layer = make(kind)
    weights, codes = exact(layer), layer.codes.clone()
    layer.to(dtype)
    assert layer.codes.dtype == codes.dtype
    assert torch.equal(layer.codes, codes)
    assert layer.scale.dtype == dtype
    for cast in (layer.half, layer.bfloat16, layer.float):
        assert torch.equal(exact(cast()), weights)
        assert layer.codes.dtype == codes.dtype


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
def test_forward_is_the_product_with_the_weight_it_stands_for(kind, dtype, bias):
    layer = make(kind, bias=bias, dtype=dtype)
    x = random(2, 3, IN, seed=4).to(dtype)
    held = layer.bias.double() if bias else None
    expected = nn.functional.linear(x.double(), exact(layer), held)
    y = layer(x)
    assert y.dtype == dtype and y.shape == (2, 3, OUT)
    assert float((y - expected).abs().max()) <= 0.02 * float(expected.abs().max())
    if dtype == torch.float32:
        torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=3e-4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_dense_weight_has_the_scales_dtype(kind, dtype):
    layer = make(kind, dtype=dtype)
    weight = dense_weight(layer)
    assert weight.dtype == dtype
    assert not weight.requires_grad
    assert torch.equal(layer.dequantize(), weight)
    tolerance = 0 if "zero" not in kind else torch.finfo(dtype).eps
    torch.testing.assert_close(weight, exact(layer).to(dtype), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
def test_a_layer_of_one_row_works_with_either_granularity(granularity):
    weight = random(1, 4)
    layer = CompressedLinear(Int8(granularity=granularity).nearest(weight), None)
    assert layer.format.granularity == granularity
    assert torch.equal(layer.scale.detach(), integer.absmax_scale(weight, per_channel=True))
    assert layer(random(3, 4)).shape == (3, 1)


@pytest.mark.parametrize("index", [[0, 2, 5], [3], list(range(OUT))])
@pytest.mark.parametrize("bias", [True, False])
def test_selecting_outputs_takes_rows(kind, index, bias):
    layer, kept = make(kind, bias=bias), torch.tensor(index)
    selected = select(layer, "output", kept)
    assert type(selected) is CompressedLinear
    assert (selected.in_features, selected.out_features) == (IN, len(index))
    assert torch.equal(exact(selected), exact(layer)[kept])
    assert (selected.bias is None) != bias
    x = random(2, IN, seed=2)
    torch.testing.assert_close(selected(x), layer(x)[:, kept], rtol=1e-5, atol=1e-4)
    for tensor in selected.state_dict().values():
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    assert not any(parameter.requires_grad for parameter in selected.parameters())


@pytest.mark.parametrize("kind", ["per_channel", "per_tensor", "g32"])
def test_outputs_can_be_selected_without_data(kind):
    twin = make(kind).to("meta")
    selected = select(twin, "output", torch.tensor([0, 2], device="meta"))
    assert selected.codes.is_meta
    expected = select(make(kind), "output", torch.tensor([0, 2]))
    assert module_bytes(selected) == module_bytes(expected)


def test_it_has_a_twin_without_data(kind):
    layer = make(kind)
    codes = layer.codes.shape
    twin = layer.to("meta")
    assert twin.codes.is_meta and twin.codes.shape == codes
    assert twin.dequantize().shape == (OUT, IN)
    assert twin(torch.zeros(3, IN, device="meta")).shape == (3, OUT)


def test_an_empty_layer_takes_the_state_of_a_full_one(kind):
    full = make(kind).bfloat16()
    weight = full.format.empty(OUT, IN, torch.bfloat16)
    empty = CompressedLinear(weight, torch.empty(OUT, dtype=torch.bfloat16))
    empty.load_state_dict(full.state_dict(), strict=True)
    empty.stored_weight.check()
    x = random(2, IN).bfloat16()
    assert torch.equal(empty(x), full(x))


def test_what_is_trained_gets_the_gradients_of_the_dense_product(kind):
    layer = make(kind)
    trained = [getattr(layer, n) for n in layer.stored_weight.trained if hasattr(layer, n)]
    assert len(trained) == 1 + ("zero" in kind)
    x = random(7, IN, seed=4).requires_grad_()
    for parameter in trained:
        parameter.requires_grad_()
    found = torch.autograd.grad(layer(x).square().sum(), [x, *trained])
    product = x @ layer.stored_weight.restore().T + layer.bias  # autograd goes through it
    expected = torch.autograd.grad(product.square().sum(), [x, *trained])
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)
    assert layer.codes.grad is None


WORDS = {
    "per_channel": "int8 per_channel",
    "per_tensor": "int8 per_tensor",
    "g64": "int4 group 64",
    "sparse4": "int4 group 16, 33% dropped",
    "sparse8_zero": "int8 group 16, 33% dropped",
}


@pytest.mark.parametrize("kind", WORDS)
def test_repr_says_what_the_layer_is(kind):
    expected = f"in_features={IN}, out_features={OUT}, bias=False, {WORDS[kind]}"
    assert repr(make(kind, bias=False)) == f"CompressedLinear({expected})"


def test_packed_and_unpacked_codes_make_the_same_layer():
    layer = make("g32")
    codes, scale = integer.unpack_int4(layer.codes.detach()), layer.scale.detach()
    again = CompressedLinear(stored_weights.int4(codes, scale), layer.bias)
    assert torch.equal(again.codes, layer.codes)
    assert again.format == layer.format == Int4(group_size=32)
