import pytest
import torch
from tests.helpers import tiny_model

from spqlm.calibration.needs import Needs
from spqlm.calibration.statistics import Statistics
from spqlm.model.view import ModelView
from spqlm.modules.low_rank_linear import LowRankLinear
from spqlm.modules.ops import module_bytes
from spqlm.numerics.low_rank import weighted_basis, weighted_truncate
from spqlm.stages.base import Inputs
from spqlm.stages.factorize import Factorize

WINDOWS = torch.randint(3, 250, (4, 32), generator=torch.Generator().manual_seed(0))


def run(stage, model):
    view = ModelView(model)
    plan = stage.plan(view, Statistics())
    stage.apply(view, plan, Inputs(Statistics(windows=WINDOWS)))
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


@torch.no_grad()
def test_whitening_is_by_what_enters_a_layer_behind_factorised_ones(model):
    halfway, name = tiny_model(), "model.layers.1.self_attn.q_proj"
    run(Factorize(keep=0.5, modules=("attention",)), model)
    halfway.model.layers[0] = model.model.layers[0]
    inputs = []
    hook = lambda _, x: inputs.append(x[0])  # noqa: E731
    halfway.get_submodule(name).register_forward_pre_hook(hook)
    halfway(input_ids=WINDOWS)
    rows = inputs[0].flatten(0, 1)
    weight, ones = halfway.get_submodule(name).weight, torch.ones(64)
    _, basis = weighted_basis(weight, rows.T @ rows / len(rows), ones)
    left, right = weighted_truncate(weight, basis, ones, 16)
    found = model.get_submodule(name)
    assert torch.allclose(found.left.weight @ found.right.weight, left @ right, atol=1e-4)


def test_plain_reads_no_text(model):
    view = ModelView(model)
    assert Factorize().needs(view) == Needs(windows=True)
    assert Factorize(whiten=False).needs(view) == Needs()


def test_the_smallest_share_leaves_rank_one(model):
    plan = run(Factorize(keep=1e-6, whiten=False), model)
    assert {change.format.rank for change in plan.changes} == {1}
