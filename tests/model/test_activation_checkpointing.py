import copy

import pytest
import torch
from tests.helpers import tiny_model

from spqlm.calibration.sensitivity import collect_sensitivities
from spqlm.changes import Plan
from spqlm.formats.int8 import Int8
from spqlm.model import activation_checkpointing as recomputation
from spqlm.model.activation_checkpointing import (
    bounded_activations,
    held_bytes,
    most_held,
    once,
)
from spqlm.model.view import ModelView
from spqlm.stages.base import Inputs
from spqlm.stages.budget import Budget
from spqlm.stages.distill import Distill
from spqlm.stages.recover import Recover

FAMILIES = ("llama", "opt", "gemma3_text")
TOKENS = torch.randint(3, 256, (600,), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def calls(monkeypatch):
    """Forward passes of decoder layers, once nothing may be held."""
    made = []

    def counted(*arguments, **options):
        made.append(1)
        return torch.utils.checkpoint.checkpoint(*arguments, **options)

    monkeypatch.setattr(recomputation, "checkpoint", counted)
    monkeypatch.setattr(recomputation, "HELD_BYTES", 0)
    monkeypatch.setattr(recomputation, "HELD_SHARE", 0)
    return made


def sensitivities(model_type, dtype=torch.float32):
    view = ModelView(tiny_model(model_type, dtype=dtype))
    names = [named.name for named in view.linears()] + [view.embedding.name]
    return collect_sensitivities(view, TOKENS[:48].reshape(2, 24), names)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_sensitivities_are_the_same_to_the_last_bit(model_type, dtype, request):
    expected = sensitivities(model_type, dtype)
    calls = request.getfixturevalue("calls")
    found = sensitivities(model_type, dtype)
    assert len(calls) == 2 * 2  # layers, windows
    assert found.keys() == expected.keys()
    for name, item in expected.items():
        for key, value in vars(item).items():
            other = getattr(found[name], key)
            assert other is value is None or torch.equal(other, value)


def trained(stage):
    dense = tiny_model("opt")
    model = copy.deepcopy(dense)
    view = ModelView(model)
    budget = Budget(formats=(Int8(),), embedding_formats=(Int8(),))
    budget.apply(view, budget.plan(view, None))
    stage.apply(view, Plan(stage=stage.key), Inputs(ids=TOKENS, dense=dense))
    return model.state_dict()


@pytest.mark.parametrize(
    "stage",
    [
        Distill(steps=2, batch_size=1, context=16, held_out=2, check_every=1, worthwhile=0),
        Recover(rank=2, steps=2, batch_size=2, context=16),
    ],
    ids=["distill", "recover"],
)
def test_training_is_the_same_to_the_last_bit(stage, request):
    expected = trained(stage)
    calls = request.getfixturevalue("calls")
    found = trained(stage)
    assert calls
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_small_models_are_not_computed_twice(calls, monkeypatch):
    view = ModelView(tiny_model())
    monkeypatch.setattr(recomputation, "HELD_BYTES", held_bytes(view, 48))
    with bounded_activations(view, 48), torch.enable_grad():
        view.model(input_ids=TOKENS[None, :48])
    assert not calls
    with bounded_activations(view, 49), torch.enable_grad():
        view.model(input_ids=TOKENS[None, :49])
    assert len(calls) == 2


def test_a_large_model_may_hold_half_of_its_weights(calls, monkeypatch):
    view = ModelView(tiny_model(dtype=torch.bfloat16))
    entries = sum(leaf.entries for leaf in view.leaves(("attention", "mlp")))
    monkeypatch.setattr(recomputation, "HELD_SHARE", 0.5)
    assert most_held(view) == entries
    tokens = 1 + entries // held_bytes(view, 1)
    for count, twice in ((tokens - 1, 0), (tokens, len(view.layers))):
        with bounded_activations(view, count), torch.enable_grad():
            view.model(input_ids=TOKENS[None, :count])
        assert len(calls) == twice


def test_a_hook_runs_once_where_it_says_so(calls):
    view = ModelView(tiny_model())
    plain, single = [], []
    query = view.layers[0].query.module
    query.register_forward_hook(lambda *_: plain.append(1))
    query.register_forward_hook(once(lambda *_: single.append(1)))
    with bounded_activations(view, 8):
        view.model(input_ids=TOKENS[None, :8]).logits.sum().backward()
    assert (len(plain), len(single)) == (2, 1)


def test_layers_are_as_they_were_even_when_the_pass_fails(calls):
    view = ModelView(tiny_model())
    first, second = (view.module(layer.name) for layer in view.layers)
    first.forward = own = first.forward
    with pytest.raises(KeyboardInterrupt), bounded_activations(view, 1):
        assert second.__dict__["forward"] is not own
        raise KeyboardInterrupt
    assert first.__dict__["forward"] is own and "forward" not in second.__dict__
