"""A float for each group while scales are trained."""

from contextlib import nullcontext

import pytest
import torch
from tests.helpers import logits, tiny_model

from spqlm.formats._shared_scales import SharedScaleWeight
from spqlm.formats.nl3 import Nl3
from spqlm.model.view import ModelView
from spqlm.modules.ops import stored_weight
from spqlm.numerics.integer import round_scale
from spqlm.stages.budget import Budget
from spqlm.training.float_scales import float_scales
from spqlm.training.master_weights import Masters, trainable
from spqlm.training.trainable_codes import trainable_codes

FORM = Nl3(group_size=32, scales="int8")


@pytest.fixture(params=[True, False], ids=["tied", "apart"])
def view(request) -> ModelView:
    found = ModelView(tiny_model("llama", tie_word_embeddings=request.param))
    stage = Budget(formats=(FORM,), embedding_formats=(FORM,))
    stage.apply(found, stage.plan(found, None))
    return found


def stored(view: ModelView) -> list[SharedScaleWeight]:
    return [stored_weight(named.module) for named in [*view.leaves(), view.embedding]]


def test_every_group_has_a_float_inside_and_nothing_changed_behind(view):
    expected = logits(view.model)
    modules = [named.module for named in view.leaves(("attention", "mlp"))]
    assert all(isinstance(weight, SharedScaleWeight) for weight in stored(view))
    with float_scales(view) as names:
        assert torch.equal(logits(view.model), expected)
        assert not any(isinstance(weight, SharedScaleWeight) for weight in stored(view))
        found = trainable(view, "scales")
        assert found.keys() == names
        assert all(p.shape[1] > 1 for p in found.values())
    again = [named.module for named in view.leaves(("attention", "mlp"))]
    assert all(module is own for module, own in zip(again, modules, strict=True))
    assert torch.equal(logits(view.model), expected)


def test_what_was_trained_is_shared_again(view):
    before = [weight.plain.scale.clone() for weight in stored(view)]
    codes = [weight.codes for weight in stored(view)]
    with float_scales(view), torch.no_grad():
        trained = [
            parameter.copy_(round_scale(parameter * (1 + 0.1 * torch.rand_like(parameter))))
            for parameter in trainable(view, "scales").values()
        ]
        floats = logits(view.model)
    after = stored(view)
    assert all(isinstance(weight, SharedScaleWeight) for weight in after)
    assert all(weight.codes is own for weight, own in zip(after, codes, strict=True))
    wanted = {id(weight.codes): weight.plain.scale for weight in after}
    assert len(wanted) == len(trained)
    for weight, scale in zip(after, before, strict=True):
        assert not torch.equal(weight.plain.scale, scale)
        largest = weight.plain.scale.abs().amax(1, keepdim=True)
        assert bool(
            ((weight.plain.scale / scale - 1).abs() <= 0.11 + largest / scale.abs() / 127).all()
        )
    found = logits(view.model)
    assert float((found - floats).norm()) < 0.03 * float(floats.norm())
    assert view.tied == (view.lm_head.module.codes is view.embedding.module.codes)


@pytest.mark.parametrize("codes", [False, True], ids=["scales", "codes too"])
def test_a_trained_model_is_what_it_was_while_it_was_trained(view, codes):
    before = logits(view.model)
    latents = trainable_codes(view, [*view.leaves(), view.embedding]) if codes else nullcontext()
    with float_scales(view) as names, latents, Masters(view, "scales", names) as trained:
        for _ in range(3):
            for parameter in trained.parameters.values():
                parameter.grad = torch.randn_like(parameter)
            trained.step(0.05, 0.3)
        inside = logits(view.model)
    assert all(isinstance(weight, SharedScaleWeight) for weight in stored(view))
    assert not torch.equal(inside, before)
    assert torch.equal(logits(view.model), inside)


def test_floats_are_shared_again_after_an_error(view):
    with pytest.raises(KeyboardInterrupt), float_scales(view):
        raise KeyboardInterrupt
    assert all(isinstance(weight, SharedScaleWeight) for weight in stored(view))
