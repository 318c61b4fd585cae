import pytest
import torch
from torch import Tensor, nn

from spqlm.modules.group_sparse_linear import GroupSparseLinear
from spqlm.modules.int4_linear import Int4Linear
from spqlm.modules.latent_linear import latent, settle
from spqlm.modules.ops import dense_weight
from spqlm.numerics import group_sparse, integer

OUT, IN, SIZE = 6, 64, 16


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def int4(dtype=torch.float32) -> Int4Linear:
    scale = integer.search_group_scale(random(OUT, IN), None, SIZE)
    codes = integer.quantize_groups(random(OUT, IN), scale)
    return Int4Linear.from_codes(codes, scale.to(dtype), random(OUT, seed=2).to(dtype))


def sparse(bits=4, *, zero=False, dtype=torch.float32) -> GroupSparseLinear:
    codes = torch.randint(-8, 8, (OUT, IN), generator=torch.Generator().manual_seed(1))
    keep = torch.rand(OUT, IN // SIZE, generator=torch.Generator().manual_seed(3)) < 0.6
    scale = integer.round_scale(random(OUT, IN // SIZE, seed=4)).to(dtype)
    zeros = integer.round_scale(random(OUT, IN // SIZE, seed=5)).to(dtype) if zero else None
    packed = group_sparse.pack(codes.to(torch.int8), scale, zeros, keep, bits)
    return GroupSparseLinear.from_weight(packed, None)


MAKERS = {
    "int4": int4,
    "sparse4": sparse,
    "sparse8": lambda **options: sparse(8, **options),
    "zeros": lambda **options: sparse(zero=True, **options),
}


@pytest.fixture(params=MAKERS)
def maker(request):
    return MAKERS[request.param]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_before_training_it_is_the_layer_and_settles_to_it(maker, dtype):
    layer = maker(dtype=dtype)
    trained, x = latent(layer), random(5, IN, seed=6).to(dtype)
    expected = x.double() @ dense_weight(layer).double().T
    expected = expected if layer.bias is None else expected + layer.bias.double()
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    assert torch.allclose(trained(x).double(), expected, rtol=tolerance, atol=10 * tolerance)
    settled = settle(trained, dtype)
    assert type(settled) is type(layer)
    for name, value in layer.state_dict().items():
        assert torch.equal(settled.state_dict()[name], value), name


def test_gradients_reach_weights_and_grids_straight_through(maker):
    layer = maker()
    trained, x = latent(layer), random(5, IN, seed=6)
    trained(x).sum().backward()
    kept = torch.ones(OUT, IN // SIZE) if trained.keep is None else trained.keep.float()
    expected = x.sum(0).expand(OUT, IN) * kept.repeat_interleave(SIZE, 1)
    assert torch.allclose(trained.weight.grad, expected, atol=1e-4)
    assert bool((trained.scale.grad[kept == 0] == 0).all())
    if trained.zero is not None:
        grouped = x.sum(0).unflatten(0, (-1, SIZE)).sum(1) * kept
        # What the grid's end cuts off moves with the zero; inside, code and zero make up.
        assert trained.zero.grad.shape == grouped.shape


def test_the_gradient_is_that_of_the_definition(maker):
    trained = latent(maker()).double()
    with torch.no_grad():
        # Beyond the ends of the grid too.
        trained.weight += 4 * random(OUT, IN, seed=7) * trained.scale.repeat_interleave(SIZE, 1)
        trained.scale.copy_(integer.round_scale(trained.scale))
    given, into = [trained.weight, trained.scale], random(OUT, IN, seed=8).double()
    given += [] if trained.zero is None else [trained.zero]
    low, high = (-8, 7) if trained.bits == 4 else (-127, 127)
    zero = 0 if trained.zero is None else trained.zero[..., None]
    position = (trained.weight.unflatten(1, (-1, SIZE)) - zero) / trained.scale[..., None]
    inside = position.clamp(low, high)
    values = (inside + (inside.round() - inside).detach()) * trained.scale[..., None] + zero
    values = values if trained.keep is None else values * trained.keep[..., None]
    expected = torch.autograd.grad((values.flatten(1) * into).sum(), given)
    columns = torch.eye(IN, dtype=torch.float64)
    trained.bias = None
    found = torch.autograd.grad((trained(columns) * into.T).sum(), given)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_dropped_groups_stay_dropped_and_codes_follow_the_weights():
    layer = sparse()
    trained = latent(layer)
    with torch.no_grad():
        trained.weight += 100 * trained.scale.repeat_interleave(SIZE, 1)
    settled = settle(trained, torch.float32)
    assert torch.equal(settled.stored_weight.keep, layer.stored_weight.keep)
    assert torch.equal(settled.offsets, layer.offsets)
    assert bool((group_sparse.stored_codes(settled.stored_weight) == 7).all())


def test_layers_without_trainable_codes_are_left_alone():
    assert latent(nn.Linear(4, 4)) is None
