import pytest
import torch
from tests import stored_weights
from tests.stored_weights import random
from torch import nn

from spqlm.formats import group_sparse
from spqlm.formats.int8 import Int8
from spqlm.formats.low_rank import of_factors
from spqlm.modules.embedding import CompressedEmbedding
from spqlm.modules.latent import LatentEmbedding, latent_layer, rounded_once
from spqlm.modules.linear import CompressedLinear
from spqlm.modules.ops import dense_weight, linear_of
from spqlm.numerics import integer

OUT, IN, SIZE = 6, 64, 16


def int4(dtype=torch.float32) -> CompressedLinear:
    scale = integer.search_group_scale(random(OUT, IN), None, SIZE)
    codes = integer.quantize_groups(random(OUT, IN), scale)
    return CompressedLinear(
        stored_weights.int4(codes, scale).cast(dtype), random(OUT, seed=2).to(dtype)
    )


def sparse(bits=4, *, zero=False, dtype=torch.float32) -> CompressedLinear:
    codes = stored_weights.random_codes(OUT, IN, 4, seed=1)
    keep = torch.rand(OUT, IN // SIZE, generator=torch.Generator().manual_seed(3)) < 0.6
    scale = integer.round_scale(random(OUT, IN // SIZE, seed=4))
    zeros = integer.round_scale(random(OUT, IN // SIZE, seed=5)) if zero else None
    return CompressedLinear(group_sparse.pack(codes, scale, zeros, keep, bits).cast(dtype), None)


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
    trained, x = latent_layer(layer), random(5, IN, seed=6).to(dtype)
    expected = x.double() @ dense_weight(layer).double().T
    expected = expected if layer.bias is None else expected + layer.bias.double()
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    assert torch.allclose(trained(x).double(), expected, rtol=tolerance, atol=10 * tolerance)
    settled = trained.settled(dtype)
    assert type(settled) is type(layer)
    assert settled.format == layer.format
    for name, value in layer.state_dict().items():
        assert torch.equal(settled.state_dict()[name], value), name


def test_gradients_reach_weights_and_grids_straight_through(maker):
    layer = maker()
    module, x = latent_layer(layer), random(5, IN, seed=6)
    module(x).sum().backward()
    trained = module.latent
    kept = torch.ones(OUT, IN // SIZE) if trained.keep is None else trained.keep.float()
    expected = x.sum(0).expand(OUT, IN) * kept.repeat_interleave(SIZE, 1)
    assert torch.allclose(trained.weight.grad, expected, atol=1e-4)
    assert bool((trained.scale.grad[kept == 0] == 0).all())
    if trained.zero is not None:
        grouped = x.sum(0).unflatten(0, (-1, SIZE)).sum(1) * kept
        # What the grid's end cuts off moves with the zero; inside, code and zero make up.
        assert trained.zero.grad.shape == grouped.shape


def test_the_gradient_is_that_of_the_definition(maker):
    module = latent_layer(maker()).double()
    trained, form = module.latent, maker().format
    with torch.no_grad():
        # Beyond the ends of the grid too.
        trained.weight += 4 * random(OUT, IN, seed=7) * trained.scale.repeat_interleave(SIZE, 1)
        trained.scale.copy_(integer.round_scale(trained.scale))
    given, into = [trained.weight, trained.scale], random(OUT, IN, seed=8).double()
    given += [] if trained.zero is None else [trained.zero]
    low, high = (-8, 7) if form.bits == 4 else (-127, 127)
    zero = 0 if trained.zero is None else trained.zero[..., None]
    position = (trained.weight.unflatten(1, (-1, SIZE)) - zero) / trained.scale[..., None]
    inside = position.clamp(low, high)
    values = (inside + (inside.round() - inside).detach()) * trained.scale[..., None] + zero
    values = values if trained.keep is None else values * trained.keep[..., None]
    expected = torch.autograd.grad((values.flatten(1) * into).sum(), given)
    columns = torch.eye(IN, dtype=torch.float64)
    module.bias = None
    found = torch.autograd.grad((module(columns) * into.T).sum(), given)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_weights_go_where_others_are_as_far_as_the_codes_stay(maker):
    layer = maker()
    trained = latent_layer(layer).latent
    values, target = trained.weight.detach().clone(), random(OUT, IN, seed=9)
    trained.approach(target)
    step = trained.scale.abs().repeat_interleave(SIZE, 1)
    before, after = (target - values).abs(), (target - trained.weight).abs()
    keep = torch.ones(OUT, IN // SIZE).bool() if trained.keep is None else trained.keep
    kept = keep.repeat_interleave(SIZE, 1)
    assert bool((after <= before + 1e-6).all()) and bool((after < before)[kept].any())
    near = (before < 0.4 * step) & kept
    # Those that would leave the range of the codes stop there.
    assert int((near & (after < 1e-5)).sum()) > 0.8 * int(near.sum())
    settled, moved = latent_layer(layer).latent.settle(), trained.settle()
    assert all(torch.equal(moved.tensors()[n], t) for n, t in settled.tensors().items())


def test_dropped_groups_stay_dropped_and_codes_follow_the_weights():
    layer = sparse()
    trained = latent_layer(layer)
    with torch.no_grad():
        trained.latent.weight += 100 * trained.latent.scale.repeat_interleave(SIZE, 1)
    settled = trained.settled(torch.float32)
    assert torch.equal(settled.stored_weight.keep, layer.stored_weight.keep)
    assert torch.equal(settled.offsets, layer.offsets)
    assert bool((settled.stored_weight.unpacked == 7).all())


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(4, 4),
        CompressedLinear(Int8().nearest(torch.eye(4)), None),
        linear_of(of_factors(torch.eye(4), torch.eye(4)), None),
    ],
    ids=["dense", "int8", "low_rank"],
)
def test_layers_without_trainable_codes_are_left_alone(layer):
    assert latent_layer(layer) is None


def test_grids_are_what_places_the_codes_values_and_a_step_is_one_of_them(maker):
    layer = maker()
    latent = latent_layer(layer).latent
    names = {name for name, p in latent.named_parameters() if any(p is g for g in latent.grids())}
    assert names == set(layer.state_dict()) & {"scale", "zero"}
    assert latent.step() == pytest.approx(float(layer.scale.abs().mean()))


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_an_embedding_is_the_same_table_while_it_is_trained(factor):
    table = CompressedEmbedding(int4(torch.bfloat16).stored_weight, factor, 1)
    trained, ids = latent_layer(table), torch.tensor([[0, 5], [3, 3]])
    assert isinstance(trained, LatentEmbedding)
    assert torch.equal(trained(ids), table(ids))
    trained(ids).float().sum().backward()
    counts = torch.tensor([1.0, 0, 0, 2, 0, 1]) * factor
    assert torch.equal(trained.latent.weight.grad, counts[:, None].expand(-1, IN))
    settled = trained.settled(torch.bfloat16)
    assert (settled.embed_scale, settled.padding_idx) == (factor, 1)
    assert all(
        torch.equal(settled.state_dict()[name], kept) for name, kept in table.state_dict().items()
    )


def test_codes_rounded_once_give_the_gradients_of_codes_rounded_each_time(maker):
    found = []
    for shared in (False, True):
        model = nn.Sequential(latent_layer(maker()))
        if shared:
            with rounded_once(model, torch.float32):
                for seed in (6, 7):
                    model(random(5, IN, seed=seed)).square().sum().backward()
                assert model[0].latent.weight.grad is None
        else:
            for seed in (6, 7):
                model(random(5, IN, seed=seed)).square().sum().backward()
        assert model[0].latent.held is None
        found.append([p.grad for p in model[0].latent.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_codes_rounded_once_are_let_go_after_an_error():
    model = nn.Sequential(latent_layer(int4()))
    with pytest.raises(RuntimeError, match="stop"), rounded_once(model, torch.float32):
        raise RuntimeError("stop")
    assert model[0].latent.held is None


def test_codes_rounded_once_need_no_gradients():
    model, x = nn.Sequential(latent_layer(int4())), random(5, IN, seed=6)
    with torch.no_grad(), rounded_once(model, torch.float32):
        found = model(x)
    assert torch.equal(found, model(x))
