import copy

import pytest
import torch
from tests.helpers import tiny_model

from spqlm.formats.int4 import Int4
from spqlm.formats.int8 import Int8
from spqlm.model.view import ModelView
from spqlm.numerics.integer import round_scale
from spqlm.stages.budget import Budget
from spqlm.training.master_weights import Masters, trainable
from spqlm.training.trainable_codes import trainable_codes


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
    with Masters(view, "all") as masters:
        start = masters.state()
        signs = {}
        for name, parameter in trainable(view, "all").items():
            assert parameter.requires_grad
            parameter.grad = torch.randn_like(parameter)
            signs[name] = parameter.grad.sign()
        masters.step(1e-2, 1e-2)
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


def test_a_scale_that_must_be_positive_stays_so(view):
    head = view.lm_head.module if view.lm_head.module is not view.embedding.module else None
    layer = head or view.embedding.module
    with torch.no_grad():
        layer.scale[::2] = 2.0**-20
    with Masters(view, "scales") as masters:
        for _ in range(3):
            for parameter in trainable(view, "scales").values():
                parameter.grad = torch.ones_like(parameter)
            masters.step(0.5, 0.0)
    layer.stored_weight.check()
    assert bool((layer.scale > 0).all())
