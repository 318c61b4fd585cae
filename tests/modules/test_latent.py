from functools import partial

import pytest
import torch
from tests import stored_weights
from tests.stored_weights import random
from torch import nn

from spqlm.formats import group_sparse
from spqlm.formats.int8 import Int8
from spqlm.formats.low_rank import of_factors
from spqlm.formats.nl3 import Nl3
from spqlm.modules.embedding import CompressedEmbedding
from spqlm.modules.latent import LatentEmbedding, latent_layer, rounded_once
from spqlm.modules.linear import CompressedLinear
from spqlm.modules.ops import dense_weight, linear_of
from spqlm.numerics import integer
from spqlm.numerics.metric import Metric
from spqlm.numerics.nonlinear import LEVELS

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


def nl3(scales="float", dtype=torch.float32) -> CompressedLinear:
    form, eye = Nl3(group_size=SIZE, scales=scales), torch.eye(IN)
    stored = form.fit(random(OUT, IN), Metric([(eye, torch.ones(OUT))]), "nearest")
    return CompressedLinear(stored.cast(dtype), None)


MAKERS = {
    "int4": int4,
    "nl3": nl3,
    "shared scales": partial(nl3, "int8"),
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


def kept(latent) -> torch.Tensor:
    """Which entries are stored."""
    everything = torch.ones(OUT, IN // SIZE, dtype=torch.bool)
    keep = everything if latent.keep is None else latent.keep
    return keep.repeat_interleave(SIZE, 1)


def levels_of(form) -> list[int]:
    """What the codes of a format stand for, ascending."""
    if form.name == "nl3":
        return list(LEVELS[3])
    return list(range(-8, 8)) if form.bits == 4 else list(range(-127, 128))


def between(position: torch.Tensor, levels: list[int]) -> torch.Tensor:
    """Levels at whole positions; their gradient is half the way from one neighbour to the other."""
    points = torch.tensor(levels, dtype=torch.float64)
    last = len(levels) - 1
    inside = position.clamp(0, last)
    code = inside.round().long()
    gaps = points.diff()
    below, above = gaps[(code - 1).clamp(min=0)], gaps[code.clamp(max=last - 1)]
    slope = (below + above) / 2
    return points[code] + slope * (inside - inside.detach())


def test_the_gradient_is_that_of_the_definition(maker):
    layer = maker()
    module, form = latent_layer(layer).double(), layer.format
    trained = module.latent
    with torch.no_grad():
        # Beyond the last codes too.
        trained.position += 4 * random(OUT, IN, seed=7)
    given, into = list(trained.parameters()), random(OUT, IN, seed=8).double()
    found = torch.autograd.grad((trained() * into).sum(), given)
    values = between(trained.position, levels_of(form)).unflatten(1, (-1, SIZE))
    values = values * trained.scale[..., None]
    values = values if trained.shift is None else values + trained.shift[..., None]
    values = values.flatten(1) * kept(trained)
    torch.testing.assert_close(trained(), values)
    expected = torch.autograd.grad((values * into).sum(), given)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_positions_go_where_a_weight_is_as_far_as_the_codes_stay(maker):
    layer = maker()
    latent, target = latent_layer(layer).latent, random(OUT, IN, seed=9)
    codes = latent.position.detach().clone()
    latent.approach(target)
    moved = latent.position.detach()
    assert torch.equal(moved.round(), codes)
    assert torch.equal(moved[~kept(latent)], codes[~kept(latent)])
    levels = torch.tensor(levels_of(layer.format), dtype=torch.float32)
    shift = 0 if latent.shift is None else latent.shift.detach()[..., None]
    place = (target.unflatten(1, (-1, SIZE)) - shift) / latent.scale.detach()[..., None]
    place = place.flatten(1)
    # Between two codes a position is the share of the way from one's level to the other's.
    for row, column in kept(latent).nonzero().tolist():
        code, wanted = int(codes[row, column]), float(place[row, column])
        other = code + (1 if wanted > levels[code] else -1)
        at = float(moved[row, column])
        if not 0 <= other < len(levels):
            assert at == code
            continue
        share = (wanted - float(levels[code])) / float(levels[other] - levels[code])
        # Beyond the border it is mirrored.
        share = min(share, max(1 - share, 0), 0.49)
        assert at == pytest.approx(code + (other - code) * share, abs=1e-3)


def test_dropped_groups_stay_dropped_and_codes_follow_positions():
    layer = sparse()
    trained = latent_layer(layer)
    with torch.no_grad():
        trained.latent.position += 100
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


def test_grids_are_what_places_the_values_of_codes(maker):
    layer = maker()
    latent = latent_layer(layer).latent
    names = {name for name, p in latent.named_parameters() if any(p is g for g in latent.grids())}
    stored = {"zero": "shift"}
    assert names == {stored.get(n, n) for n in layer.state_dict() if n in ("scale", "zero")}


@pytest.mark.parametrize("zero", [False, True])
def test_groups_that_are_not_stored_leave_the_mean_of_the_grids_alone(zero):
    layer = sparse(zero=zero)
    for grid, stored in zip(latent_layer(layer).latent.grids(), ("scale", "zero"), strict=False):
        mean = float(getattr(layer, stored).abs().mean())
        assert float(grid.detach().abs().mean()) == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_an_embedding_is_the_same_table_while_it_is_trained(factor):
    table = CompressedEmbedding(int4(torch.bfloat16).stored_weight, factor, 1)
    trained, ids = latent_layer(table), torch.tensor([[0, 5], [3, 3]])
    assert isinstance(trained, LatentEmbedding)
    assert torch.equal(trained(ids), table(ids))
    trained(ids).float().sum().backward()
    counts = torch.tensor([1.0, 0, 0, 2, 0, 1]) * factor
    steps = trained.latent.scale.detach().repeat_interleave(SIZE, 1)
    assert torch.equal(trained.latent.position.grad, counts[:, None] * steps)
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
                assert model[0].latent.position.grad is None
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
