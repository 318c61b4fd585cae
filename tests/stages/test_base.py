"""What every stage answers to the one question it is asked."""

import pytest

from spqlm.calibration.needs import Needs
from spqlm.model.view import ModelView
from spqlm.stages import available, stage_class

ANSWERS = [
    ("quantize", {}, Needs()),
    ("svd", {}, Needs()),
    ("mask", {}, Needs(windows=True)),
    ("smooth", {"strength": 0.5}, Needs(windows=True)),
    ("factorize", {}, Needs(windows=True)),
    ("factorize", {"whiten": False}, Needs()),
    ("recover", {}, Needs(text=True)),
    ("distill", {}, Needs(text=True, dense=True)),
    ("distill", {"objective": "next_token"}, Needs(text=True)),
    ("budget", {"target_bytes": None, "bits": (8,), "embedding_bits": (8,)}, Needs()),
]


@pytest.mark.parametrize(("key", "fields", "needs"), ANSWERS)
def test_a_stage_says_what_it_needs(model, key, fields, needs):
    assert stage_class(key)(**fields).needs(ModelView(model)) == needs


def test_prune_observes_the_modules_it_scores(model):
    view = ModelView(model)
    needs = stage_class("prune")(modules=("mlp",)).needs(view)
    assert needs == Needs(observations=needs.observations)
    expected = {(layer.mlp_scored.name, "output") for layer in view.layers}
    assert {(found.module, found.side) for found in needs.observations} == expected


@pytest.mark.parametrize("key", ["budget", "sparsify"])
def test_what_is_priced_needs_sensitivities(model, key):
    view = ModelView(model)
    stage = stage_class(key)()
    needs = (stage.within(1000) or stage).needs(view)
    assert needs == Needs(sensitivities=needs.sensitivities)
    assert {named.name for named in view.linears(("attention", "mlp"))} <= needs.sensitivities


@pytest.mark.parametrize("key", available())
def test_what_trains_needs_text(model, key):
    stage = stage_class(key)()
    assert stage.needs(ModelView(model)).text == stage.trains


@pytest.mark.parametrize("key", available())
def test_a_limit_is_taken_whole_or_not_at_all(key):
    stage = stage_class(key)()
    assert stage.byte_limit is None
    limited = stage.within(1234)
    assert limited is None or limited.byte_limit == 1234
    assert (limited is not None) == (key == "budget")


def test_stages_say_what_memory_they_take(model):
    view = ModelView(model)
    budget = stage_class("budget")(target_bytes=1000)
    assert budget.needs(view).apart and not budget.needs(view).beside
    trained = budget.model_copy(update={"asymmetric": 0.5}).needs(view)
    assert trained.beside and not trained.apart
    scales, codes = (
        stage_class("distill")(parameters=kind).needs(view).training for kind in ("all", "codes")
    )
    adapters = stage_class("recover")().needs(view).training
    assert 0 < scales < adapters and scales < codes
