import json

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from spqlm.checkpoint.spec import SPECS, spec_of
from spqlm.modules.int4_linear import Int4Linear
from spqlm.modules.ops import dense_weight, module_bytes, on_meta, select_outputs
from spqlm.numerics import integer

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
OUT, IN = 6, 128


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make(
    group_size: int = 32, *, bias: bool = True, dtype: torch.dtype = torch.float32
) -> Int4Linear:
    weight = random(OUT, IN)
    scale = integer.search_group_scale(weight, None, group_size)
    codes = integer.quantize_groups(weight, scale)
    held = random(OUT, seed=1).to(dtype) if bias else None
    return Int4Linear.from_codes(codes, scale.to(dtype), held)


def exact(layer: Int4Linear) -> Tensor:
    spread = layer.scale.double().repeat_interleave(layer.group_size, 1)
    return integer.unpack_int4(layer.codes).double() * spread


@pytest.fixture(params=[32, 64, 128], ids="g{}".format)
def group_size(request) -> int:
    return request.param


@pytest.mark.parametrize("bias", [True, False])
def test_shapes_come_from_the_codes_and_scales(group_size, bias):
    layer = make(group_size, bias=bias)
    assert (layer.in_features, layer.out_features) == (IN, OUT)
    assert layer.group_size == group_size
    assert layer.codes.dtype == torch.uint8
    assert layer.codes.shape == (OUT, IN // 2)
    assert layer.scale.shape == (OUT, IN // group_size)
    assert (layer.bias is not None) == bias


def test_packed_and_unpacked_codes_make_the_same_layer(group_size):
    layer = make(group_size)
    for codes in (layer.codes.detach(), integer.unpack_int4(layer.codes)):
        again = Int4Linear.from_codes(codes, layer.scale.detach(), layer.bias.detach())
        assert torch.equal(again.codes, layer.codes)
        assert again.group_size == group_size
    packed = layer.codes.detach()
    again = Int4Linear.from_codes(packed, layer.scale.detach(), layer.bias.detach())
    for held, given in ((again.codes, packed), (again.scale, layer.scale)):
        assert held.data_ptr() == given.data_ptr()


def test_weights_are_near_the_dense_ones(group_size):
    off = (exact(make(group_size)) - random(OUT, IN).double()).square().mean().sqrt()
    assert float(off) < 0.15


def test_nothing_but_codes_scale_and_bias_is_held(group_size):
    layer = make(group_size)
    layer(random(2, IN))
    assert set(layer.state_dict()) == {"codes", "scale", "bias"}
    assert set(dict(layer.named_parameters())) == {"codes", "scale", "bias"}
    assert not any(parameter.requires_grad for parameter in layer.parameters())
    assert {k for k, v in vars(layer).items() if isinstance(v, Tensor)} == set()
    assert not isinstance(layer, nn.Linear)
    assert not hasattr(layer, "weight")
    assert module_bytes(layer) == OUT * IN // 2 + 4 * OUT * IN // group_size + 4 * OUT


@pytest.mark.parametrize("dtype", DTYPES)
def test_casts_keep_exactly_the_same_weights(group_size, dtype):
    layer = make(group_size)
    weights, codes = exact(layer), layer.codes.clone()
    layer.to(dtype)
    assert layer.codes.dtype == torch.uint8
    assert torch.equal(layer.codes, codes)
    assert layer.scale.dtype == dtype
    for cast in (layer.half, layer.bfloat16, layer.float):
        assert torch.equal(exact(cast()), weights)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
def test_forward_keeps_the_dtype_of_the_input(group_size, dtype, bias):
    layer = make(group_size, bias=bias).to(dtype)
    x = random(2, 3, IN, seed=2).to(dtype)
    held = layer.bias.double() if bias else None
    expected = nn.functional.linear(x.double(), exact(layer), held)
    y = layer(x)
    assert y.dtype == dtype
    assert float((y - expected).abs().max()) <= 0.02 * float(expected.abs().max())


def test_the_dense_weight_has_the_scales_dtype(group_size):
    layer = make(group_size)
    assert torch.equal(dense_weight(layer).double(), exact(layer))
    assert not dense_weight(layer).requires_grad
    assert layer.bfloat16().dequantize().dtype == torch.bfloat16


@pytest.mark.parametrize("index", [[0, 2, 5], [3], list(range(OUT))])
@pytest.mark.parametrize("bias", [True, False])
def test_selecting_outputs_takes_rows(group_size, index, bias):
    layer, kept = make(group_size, bias=bias), torch.tensor(index)
    selected = select_outputs(layer, kept)
    assert type(selected) is Int4Linear
    assert (selected.in_features, selected.out_features) == (IN, len(index))
    assert selected.group_size == group_size
    assert torch.equal(exact(selected), exact(layer)[kept])
    assert (selected.bias is None) != bias
    x = random(2, IN, seed=2)
    torch.testing.assert_close(selected(x), layer(x)[:, kept], rtol=1e-5, atol=1e-5)
    for tensor in selected.state_dict().values():
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    assert not any(parameter.requires_grad for parameter in selected.parameters())


def test_outputs_can_be_selected_without_data():
    twin = on_meta(make())
    selected = select_outputs(twin, torch.tensor([0, 2], device="meta"))
    assert selected.codes.is_meta
    assert module_bytes(selected) == module_bytes(select_outputs(make(), torch.tensor([0, 2])))


def test_an_empty_layer_takes_the_state_of_a_full_one(group_size):
    full = make(group_size).bfloat16()
    empty = Int4Linear(IN, OUT, bias=True, group_size=group_size, dtype=torch.bfloat16)
    empty.load_state_dict(full.state_dict(), strict=True)
    x = random(2, IN).bfloat16()
    assert torch.equal(empty(x), full(x))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_rebuilt_from_the_json_of_its_spec(group_size, bias, dtype):
    layer = make(group_size, bias=bias, dtype=dtype)
    stored = json.dumps({"x": spec_of(layer).model_dump()})
    spec = SPECS.validate_json(stored)["x"]
    assert spec == SPECS.validate_python(json.loads(stored))["x"] == spec_of(layer)
    rebuilt = spec.build(dtype)
    assert spec_of(rebuilt) == spec
    rebuilt.load_state_dict(layer.state_dict(), strict=True)
    x = random(3, IN).to(dtype)
    assert torch.equal(rebuilt(x), layer(x))


STATED = {
    "format": "int4",
    "in_features": 128,
    "out_features": 6,
    "bias": False,
    "group_size": 32,
}


@pytest.mark.parametrize(
    "change",
    [
        {"group_size": 48},
        {"group_size": 256},
        {"group_size": 1},
        {"group_size": 0},
        {"group_size": -32},
        {"group_size": "32"},
        {"group_size": 32.0},
        {"group_size": None},
        {"group_size": True},
        {"in_features": 100},
        {"in_features": 33, "group_size": 33},
        {"granularity": "per_channel"},
    ],
    ids=str,
)
def test_a_spec_that_cannot_be_is_refused(change):
    assert SPECS.validate_python({"x": STATED})
    with pytest.raises(ValidationError):
        SPECS.validate_python({"x": STATED | change})


def test_the_scale_can_be_trained(group_size):
    layer = make(group_size)
    layer.scale.requires_grad_()
    layer(random(2, IN)).sum().backward()
    assert layer.scale.grad.shape == layer.scale.shape
    assert layer.codes.grad is None


def test_repr_says_what_the_layer_is():
    expected = "in_features=128, out_features=6, bias=False, int4, group_size=64"
    assert repr(make(64, bias=False)) == f"Int4Linear({expected})"
