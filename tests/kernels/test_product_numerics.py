"""Products and their gradients, for every format, against dense layers in float64."""

from dataclasses import replace

import pytest
import torch
from tests.stored_weights import definition, int4, int8, random_codes
from torch import Tensor
from torch.nn import functional

from spqlm.formats import StoredWeight, group_sparse
from spqlm.kernels.product import linear

OUT, IN = 5, 24
SHAPES = [(3,), (1,), (2, 3), (2, 1, 4), (), (0,)]


def _scales(*shape: int, signs: bool = True) -> Tensor:
    """Multiples of 1/64: the same in every dtype."""
    generator = torch.Generator().manual_seed(1)
    scale = torch.randint(1, 17, shape, generator=generator) / 64
    signed = torch.randint(0, 2, shape, generator=generator) * 2 - 1
    return scale * signed if signs else scale


def grouped(groups: int) -> StoredWeight:
    return int4(random_codes(OUT, IN, 4), _scales(OUT, groups))


def sparse(bits: int, zero: bool) -> StoredWeight:
    keep = torch.arange(15).view(OUT, 3) % 4 > 0
    zeros = _scales(OUT, 3) if zero else None
    return group_sparse.pack(random_codes(OUT, IN, bits), _scales(OUT, 3), zeros, keep, bits)


WEIGHTS = {
    "per_channel": lambda: int8(random_codes(OUT, IN, 8), _scales(OUT, signs=False) / 4),
    "per_tensor": lambda: int8(random_codes(OUT, IN, 8), _scales(1, signs=False) / 4),
    "1_groups": lambda: grouped(1),
    "3_groups": lambda: grouped(3),
    "12_groups": lambda: grouped(12),
    "sparse4": lambda: sparse(4, False),
    "sparse4_zero": lambda: sparse(4, True),
    "sparse8": lambda: sparse(8, False),
    "sparse8_zero": lambda: sparse(8, True),
}


@pytest.fixture(params=WEIGHTS)
def weight(request) -> StoredWeight:
    return WEIGHTS[request.param]()


def make(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """x [*shape, 24] and bias [5]."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*shape, IN, generator=generator).to(dtype)
    return x, torch.randn(OUT, generator=generator).to(dtype)


def training(weight: StoredWeight, trained: bool = True) -> tuple[StoredWeight, list[Tensor]]:
    """The weight with leaves for its scales and zeros, and these."""
    held = {name: t.clone() for name, t in weight.tensors().items() if name in weight.trained}
    for tensor in held.values():
        tensor.requires_grad_(trained)
    return replace(weight, **held), list(held.values())


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)]
)
def test_equals_the_dense_layer_in_float64(weight, with_bias, shape, dtype, tolerance):
    x, bias = make(*shape, dtype=dtype)
    bias = bias if with_bias else None
    y = linear(x, weight.cast(dtype), bias)
    assert y.dtype == dtype
    assert y.shape == (*shape, OUT)
    held = None if bias is None else bias.double()
    expected = functional.linear(x.double(), definition(weight), held)
    largest = float(expected.abs().max()) if expected.numel() else 0
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=tolerance * largest)


@pytest.mark.parametrize("trained", [True, False])
def test_scale_of_another_dtype_than_the_input_is_accepted(weight, trained):
    x, bias = make(4)
    expected = linear(x, training(weight, trained)[0], bias)
    half, leaves = training(weight.cast(torch.bfloat16), trained)
    y = linear(x, half, bias)
    assert y.dtype == torch.float32
    assert torch.equal(y, expected)
    if trained:
        y.sum().backward()
        assert {leaf.grad.dtype for leaf in leaves} == {torch.bfloat16}


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("form", ["int4", "int8", "sparse"])
def test_half_precision_does_not_overflow_where_the_dense_layer_would_not(form, trained):
    # Codes are hundreds of times larger than weights; their sum must not be formed in float16.
    if form == "int8":
        x, code, scale = torch.full((1, 64), 30.0), 127, torch.full((2,), 2.0**-10)
        weight = int8(torch.full((2, 64), code, dtype=torch.int8), scale)
    else:
        x, code, scale = torch.full((1, 4096), 100.0), 7, torch.full((2, 64), 2.0**-10)
        codes = torch.full((2, 4096), code, dtype=torch.int8)
        keep = torch.ones(2, 64, dtype=torch.bool)
        weight = int4(codes, scale) if form == "int4" else None
        weight = weight or group_sparse.pack(codes, scale, None, keep, 4)
    weight = weight.cast(torch.float16)
    y = linear(x.half().requires_grad_(trained), weight, None)
    expected = x.double() @ definition(weight).T
    torch.testing.assert_close(y.detach().double(), expected, rtol=2e-3, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_equal_those_of_the_dense_formulation(weight, shape, dtype):
    x, bias = make(*shape, dtype=dtype)
    weights = torch.linspace(-1, 1, OUT, dtype=dtype)

    def gradients(multiply):
        stored, leaves = training(weight.cast(dtype))
        leaves = [x.clone().requires_grad_(), bias.clone().requires_grad_(), *leaves]
        y = multiply(leaves[0], stored, leaves[1])
        (y * weights).square().sum().backward()
        return [leaf.grad for leaf in leaves]

    found = gradients(linear)
    expected = gradients(lambda x, w, bias: functional.linear(x, w.restore(), bias))
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_gradients_in_bfloat16_are_close_to_float64(weight):
    x, _ = make(4, dtype=torch.bfloat16)

    def gradients(dtype, multiply):
        stored, leaves = training(weight.cast(dtype))
        leaves = [x.to(dtype, copy=True).requires_grad_(), *leaves]
        multiply(leaves[0], stored).sum().backward()
        return [leaf.grad for leaf in leaves]

    found = gradients(torch.bfloat16, lambda x, w: linear(x, w, None))
    expected = gradients(torch.float64, lambda x, w: functional.linear(x, w.restore()))
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.bfloat16
        assert float((one - other).abs().max()) <= 2e-2 * float(other.abs().max())


@pytest.mark.parametrize("trained", ["x", "scale", "both"])
def test_only_what_asks_for_a_gradient_gets_one(weight, trained):
    x, _ = make(4)
    x.requires_grad_(trained != "scale")
    stored, leaves = training(weight, trained != "x")
    linear(x, stored, None).sum().backward()
    assert (x.grad is not None) == (trained != "scale")
    for leaf in leaves:
        assert (leaf.grad is not None) == (trained != "x")


@pytest.mark.parametrize("trains_scale", [True, False])
def test_no_float_copy_of_the_weight_is_kept_for_the_backward_pass(weight, trains_scale):
    x, _ = make(4)
    x.requires_grad_()
    stored, leaves = training(weight, trains_scale)
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = linear(x, stored, None)
    saved += vars(y.grad_fn)["weight"].tensors().values()
    # Codes and scales are held as they are, and the input where a scale's gradient asks for it.
    held = {t.data_ptr() for t in stored.tensors().values()}
    assert {t.data_ptr() for t in saved} <= held | ({x.data_ptr()} if trains_scale else set())
    assert set(vars(y.grad_fn)) == {"weight"}
    assert any(t.data_ptr() == x.data_ptr() for t in saved) == trains_scale
    y.sum().backward()
    assert x.grad is not None
    assert all((leaf.grad is not None) == trains_scale for leaf in leaves)


def test_nothing_is_recorded_where_nothing_is_trained(weight):
    x, bias = make(4)
    assert not linear(x, weight, bias).requires_grad
    with torch.no_grad():
        assert not linear(x.requires_grad_(), weight, bias).requires_grad


def test_a_trained_bias_gets_its_gradient_alone(weight):
    x, bias = make(4)
    bias.requires_grad_()
    linear(x, weight, bias).sum().backward()
    assert torch.equal(bias.grad, torch.full((OUT,), 4.0))
