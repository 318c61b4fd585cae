import pytest
import torch
from tests.helpers import tiny_model

from spqlm.calibration.statistics import Statistics
from spqlm.changes import Zeroed
from spqlm.errors import SpqError
from spqlm.model.view import ModelView
from spqlm.numerics import sparse
from spqlm.stages.base import Inputs
from spqlm.stages.mask import Mask

WINDOWS = torch.randint(3, 250, (4, 32), generator=torch.Generator().manual_seed(0))


def run(stage, model):
    view = ModelView(model)
    plan = stage.plan(view, Statistics())
    stage.apply(view, plan, Inputs(Statistics(windows=WINDOWS)))
    return plan


@pytest.mark.parametrize("method", ["sparsegpt", "wanda"])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_as_many_weights_go_as_planned(model, method, pattern):
    plan = run(Mask(method=method, pattern=pattern, sparsity=0.5), model)
    assert len(plan.changes) == 2 * 7
    packed = 0
    for change in plan.changes:
        weight = model.get_submodule(change.module).weight
        nonzeros = int((weight != 0).sum())
        assert change.zeroed == Zeroed(entries=weight.numel(), nonzeros=nonzeros)
        packed += sparse.packed_bytes(nonzeros, weight.numel(), 4, pattern)
    assert plan.bytes_saved == 0
    assert f", {packed / 1e6:.1f} MB if packed" in plan.summary


@torch.no_grad()
def test_a_weight_is_pruned_by_what_enters_it_behind_pruned_layers(model):
    halfway, name = tiny_model(), "model.layers.1.mlp.down_proj"
    dense = model.get_submodule(name).weight.clone()
    run(Mask(sparsity=0.4), model)
    first = model.get_submodule("model.layers.0").state_dict()
    halfway.get_submodule("model.layers.0").load_state_dict(first)
    inputs = []
    halfway.get_submodule(name).register_forward_pre_hook(lambda _, x: inputs.append(x[0]))
    halfway(input_ids=WINDOWS)
    rows = inputs[0].flatten(0, 1)
    expected = sparse.sparsegpt(dense, rows.T @ rows / len(rows), 0.4)
    assert torch.allclose(model.get_submodule(name).weight, expected, atol=1e-4)


def test_only_the_modules_asked_for(model):
    before = {name: p.clone() for name, p in model.named_parameters()}
    run(Mask(modules=("mlp",)), model)
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert len(changed) == 6 and all("mlp" in name for name in changed)


def test_a_width_that_four_does_not_divide_is_refused():
    model = tiny_model(intermediate_size=126)
    with pytest.raises(SpqError, match=r"2:4 needs a width that 4 divides; .*down_proj' has 126"):
        run(Mask(pattern="2:4"), model)
