import pytest
import torch
from tests.helpers import tiny_model

from spq.calibration import collect
from spq.modules.low_rank_linear import LowRankLinear
from spq.modules.ops import module_bytes
from spq.stages.base import Inputs
from spq.stages.factorize import Factorize
from spq.view import ModelView

WINDOWS = torch.randint(3, 250, (4, 32), generator=torch.Generator().manual_seed(0))


def run(stage, model):
    view = ModelView(model)
    statistics = collect(model, WINDOWS, stage.needs(view))
    plan = stage.plan(view, statistics)
    stage.apply(view, plan, Inputs(statistics))
    return plan


@pytest.mark.parametrize("whiten", [True, False])
def test_every_layer_keeps_the_share_asked_for(model, whiten):
    plan = run(Factorize(keep=0.4, whiten=whiten), model)
    assert len(plan.changes) == 2 * 7
    for change in plan.changes:
        layer = model.get_submodule(change.module)
        assert isinstance(layer, LowRankLinear)
        assert module_bytes(layer) == change.bytes_after <= 0.4 * change.bytes_before
        assert change.bytes_after > 0.3 * change.bytes_before


def test_whitening_keeps_more_of_the_output():
    with torch.no_grad():
        dense = tiny_model()(input_ids=WINDOWS).logits
        errors = []
        for whiten in (True, False):
            model = tiny_model()
            run(Factorize(keep=0.7, whiten=whiten, modules=("mlp",)), model)
            errors.append(float((model(input_ids=WINDOWS).logits - dense).square().mean()))
    assert errors[0] < errors[1]


def test_plain_needs_no_statistics(model):
    assert Factorize(whiten=False).needs(ModelView(model)) == set()


def test_the_smallest_share_leaves_rank_one(model):
    plan = run(Factorize(keep=1e-6, whiten=False), model)
    assert {change.details["rank"] for change in plan.changes} == {1}
