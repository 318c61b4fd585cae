import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from spqlm.checkpoint.spec import SPECS, spec_of
from spqlm.modules.group_sparse_linear import GroupSparseLinear
from spqlm.modules.ops import dense_weight, module_bytes, on_meta, select_inputs, select_outputs
from spqlm.numerics import group_sparse

OUT, IN, SIZE = 6, 128, 16


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make(*, bits=4, zero=False, bias=True, dtype=torch.float32) -> GroupSparseLinear:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-8, 8, (OUT, IN), generator=generator).to(torch.int8)
    keep = torch.rand(OUT, IN // SIZE, generator=generator) < 0.6
    scale = random(OUT, IN // SIZE, seed=1).to(dtype)
    zeros = random(OUT, IN // SIZE, seed=2).to(dtype) if zero else None
    weight = group_sparse.pack(codes, scale, zeros, keep, bits)
    return GroupSparseLinear.from_weight(weight, random(OUT, seed=3).to(dtype) if bias else None)


KINDS = [{"bits": bits, "zero": zero} for bits in (4, 8) for zero in (False, True)]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_forward_is_the_product_with_the_weight_it_stands_for(kind, dtype):
    layer = make(dtype=dtype, **kind)
    x = random(3, 5, IN, seed=4).to(dtype)
    exact = x.double() @ dense_weight(layer).double().T + layer.bias.double()
    found = layer(x)
    assert found.dtype == dtype and found.shape == (3, 5, OUT)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    assert torch.allclose(found.double(), exact, rtol=tolerance, atol=tolerance * 30)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_gradients_are_those_of_the_dense_product(kind):
    layer = make(**kind)
    trained = [layer.scale, *([layer.zero] if kind["zero"] else [])]
    x = random(7, IN, seed=4).requires_grad_()
    for parameter in trained:
        parameter.requires_grad_()
    found = torch.autograd.grad(layer(x).square().sum(), [x, *trained])
    weight = layer.stored_weight
    dense = group_sparse.dequantize(weight)  # autograd goes through it
    product = x @ dense.T + layer.bias
    expected = torch.autograd.grad(product.square().sum(), [x, *trained])
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-3)


def test_it_holds_nothing_but_what_is_stored():
    layer = make(bits=4, zero=True, dtype=torch.bfloat16)
    size = group_sparse.stored_bytes(OUT, IN, layer.kept, SIZE, 4, 2, True) + 2 * OUT
    assert module_bytes(layer) == size


def test_the_spec_rebuilds_it():
    layer = make(bits=8, zero=True)
    [spec] = SPECS.validate_json(SPECS.dump_json({"q": spec_of(layer)})).values()
    built = spec.build(torch.float32)
    built.load_state_dict(layer.state_dict())
    assert torch.equal(dense_weight(built), dense_weight(layer))
    built.check()


@pytest.mark.parametrize(
    ("change", "words"),
    [({"group_size": 24}, "divide"), ({"kept": 10**6}, "more than"), ({"bits": 3}, "4")],
)
def test_a_spec_that_cannot_be_is_refused(change, words):
    fields = spec_of(make()).model_dump() | change
    with pytest.raises(ValidationError, match=words):
        SPECS.validate_python({"q": fields})


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("scale", lambda t: t.mul_(0), "scale that is zero"),
        ("zero", lambda t: t.fill_(float("nan")), "zero that is not finite"),
        ("offsets", lambda t: t.add_(1), "offsets"),
        ("mask", lambda t: t.bitwise_xor_(1), "offsets"),
    ],
)
def test_damaged_values_are_found(name, damage, words):
    layer = make(zero=True)
    layer.check()
    with torch.no_grad():
        damage(getattr(layer, name))
    with pytest.raises(ValueError, match=words):
        layer.check()


def test_outputs_and_whole_groups_of_inputs_can_be_taken():
    layer = make(zero=True)
    dense, index = dense_weight(layer), torch.tensor([1, 4])
    taken = select_outputs(layer, index)
    assert torch.equal(dense_weight(taken), dense[index])
    assert torch.equal(taken.bias, layer.bias[index])
    narrow = select_inputs(layer, torch.arange(32, 96))
    assert torch.equal(dense_weight(narrow), dense[:, 32:96])
    with pytest.raises(TypeError, match="runs of 16"):
        select_inputs(layer, torch.arange(8, 40))


def test_it_has_a_twin_without_data_and_a_word_about_itself():
    layer = make()
    twin: nn.Module = on_meta(layer)
    assert twin.codes.is_meta and twin.codes.shape == layer.codes.shape
    assert "sparsity=" in repr(layer) and "int4" in repr(layer)
