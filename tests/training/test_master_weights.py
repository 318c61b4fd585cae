import copy

import pytest
import torch
from tests.helpers import tiny_model

from spqlm.formats.int4 import Int4
from spqlm.formats.int8 import Int8
from spqlm.model.view import ModelView
from spqlm.modules.ops import linear_of
from spqlm.numerics.integer import round_scale
from spqlm.numerics.metric import Metric
from spqlm.stages.budget import Budget
from spqlm.training.master_weights import Masters, trainable
from spqlm.training.reconstruction import trainable_codes


@pytest.fixture(params=["llama", "qwen3", "opt", "gemma3_text"])
def view(request) -> ModelView:
    found = ModelView(tiny_model(request.param))
    stage = Budget(formats=(Int4(group_size=32),), embedding_formats=(Int8(),))
    stage.apply(found, stage.plan(found, None))
    return found


def test_what_is_trained(view):
    scales, everything = trainable(view, "scales"), trainable(view, "all")
    assert {name.rpartition(".")[2] for name in scales} == {"scale"}
    others = [p for name, p in everything.items() if name not in scales]
    assert others and all(p.ndim == 1 for p in others)
    norm = [name for name in everything if "layers" not in name and "norm" in name]
    assert norm, "the one behind the last layer"
    vocabulary = [named.module for named in (view.embedding, view.lm_head)]
    for wanted in (scales, everything):
        assert all(any(p is layer.scale for p in wanted.values()) for layer in vocabulary)
    with trainable_codes(view, view.leaves()):
        codes = trainable(view, "codes")
    names = [named.name for named in view.linears(("attention", "mlp"))]
    between = {f"{name}.latent.{part}" for name in names for part in ("position", "scale")}
    assert set(codes) - set(everything) == between
    assert set(everything) - set(codes) == {f"{name}.scale" for name in names}


def test_codes_of_more_bits_than_asked_for_are_left_alone(view):
    leaves = list(view.leaves(("attention", "mlp")))
    for most_bits, count in ((3, 0), (4, len(leaves))):
        with trainable_codes(view, leaves, most_bits) as latents:
            assert len(latents) == count


def test_steps_go_down_the_gradient_and_can_be_taken_back(view):
    before = copy.deepcopy(view.model.state_dict())
    flags = {name: p.requires_grad for name, p in view.model.named_parameters()}
    # Of int8 a step is 1/32 of that, and scales have eight significant bits.
    with Masters(view, "all", 0.5, 1e-2) as masters:
        start = masters.state()
        signs = {}
        for name, parameter in trainable(view, "all").items():
            assert parameter.requires_grad
            parameter.grad = torch.randn_like(parameter)
            signs[name] = parameter.grad.sign()
        masters.step(1.0)
        for name, parameter in trainable(view, "all").items():
            assert parameter.grad is None
            # Adam's first step is of its rate's size, whatever the gradient's.
            moved = parameter.detach() - start[name]
            assert bool((moved * signs[name] <= 0).all())
            if name.endswith(".scale"):
                assert bool(moved.any())
                assert torch.equal(round_scale(parameter.detach()), parameter)
        masters.restore(start)
    assert {name: p.requires_grad for name, p in view.model.named_parameters()} == flags
    assert all(p.grad is None for p in view.model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in view.model.state_dict().items())


def test_each_bit_more_halves_the_steps():
    found = ModelView(tiny_model("llama"))
    formats = {4: Int4(group_size=32), 8: Int8()}
    fine, coarse = "model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj"
    for name, form in ((fine, formats[8]), (coarse, formats[4])):
        weight = found.module(name).weight.detach()
        plain = Metric([(torch.eye(weight.shape[1]), torch.ones(len(weight)))])
        found.replace(name, linear_of(form.fit(weight, plain, "nearest"), None))
    moved = {}
    with Masters(found, "all", 1e-2, 0.0) as masters:
        for parameter in masters.parameters.values():
            parameter.grad = torch.ones_like(parameter)
        start = {name: p.clone() for name, p in masters.masters().items()}
        masters.step(1.0)
        for name, kind in ((f"{n}.scale", n) for n in (fine, coarse)):
            before, after = start[f"{name}/value"], masters.masters()[f"{name}/value"]
            moved[kind] = float((before - after).mean() / before.abs().mean())
    assert moved[coarse] == pytest.approx(1e-2 / 2, rel=1e-3)
    assert moved[fine] == pytest.approx(1e-2 / 32, rel=1e-3)


def test_a_bias_has_the_rate_of_all_and_not_of_its_layer():
    found = ModelView(tiny_model("qwen2", dtype=torch.float32))
    name = "model.layers.0.self_attn.q_proj"
    layer = found.module(name)
    plain = Metric([(torch.eye(layer.in_features), torch.ones(layer.out_features))])
    weight = Int8().fit(layer.weight.detach(), plain, "nearest")
    torch.nn.init.ones_(layer.bias)
    found.replace(name, linear_of(weight, layer.bias.detach()))
    coded = Int4(group_size=32).fit(
        found.module("model.layers.1.mlp.up_proj").weight.detach(),
        Metric([(torch.eye(64), torch.ones(128))]),
        "nearest",
    )
    found.replace("model.layers.1.mlp.up_proj", linear_of(coded, None))
    with Masters(found, "all", 1e-2, 0.0) as masters:
        for parameter in masters.parameters.values():
            parameter.grad = torch.ones_like(parameter)
        masters.step(1.0)
        moved = 1 - float(masters.masters()[f"{name}.bias/value"].mean())
    entries = {8: 64 * 64, 4: 64 * 128}
    mean = sum(bits * count for bits, count in entries.items()) / sum(entries.values())
    assert moved == pytest.approx(1e-2 * 2 ** (3 - mean), rel=1e-3)


def test_a_scale_that_must_be_positive_stays_so(view):
    head = view.lm_head.module if view.lm_head.module is not view.embedding.module else None
    layer = head or view.embedding.module
    with torch.no_grad():
        layer.scale[::2] = 2.0**-20
    with Masters(view, "scales", 0.5, 0.0) as masters:
        for _ in range(3):
            for parameter in trainable(view, "scales").values():
                parameter.grad = torch.ones_like(parameter)
            masters.step(1.0)
    layer.stored_weight.check()
    assert bool((layer.scale > 0).all())
