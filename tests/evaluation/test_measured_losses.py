import copy

import pytest
import torch
from tests.helpers import calibrated, tiny_model

from spqlm.calibration.statistics import collect
from spqlm.evaluation.measured_losses import measured_losses
from spqlm.formats.int4 import Int4
from spqlm.formats.int8 import Int8
from spqlm.model.view import ModelView
from spqlm.modules.linear import Compressed
from spqlm.stages.base import Inputs
from spqlm.stages.budget import Budget
from spqlm.stages.prune import Prune

FAMILIES = ("llama", "opt", "gemma3_text")


def windows(count: int = 3) -> torch.Tensor:
    return torch.randint(3, 250, (count, 20), generator=torch.Generator().manual_seed(3))


def rounded(model):
    """The same model in int4 and int8, as nothing was known of the text."""
    view = ModelView(copy.deepcopy(model))
    stage = Budget(formats=(Int4(group_size=32),), embedding_formats=(Int8(),), rounding="nearest")
    stage.apply(view, stage.plan(view, calibrated(model)), Inputs())
    return view


@torch.no_grad()
def divergence(dense, changed) -> float:
    total = 0.0
    for ids in windows():
        p, q = (m(ids[None]).logits[0].double().log_softmax(-1) for m in (dense, changed))
        total += float((p.exp() * (p - q)).sum())
    return total / windows().numel()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_module_alone_costs_what_swapping_it_by_hand_costs(model_type, tied):
    dense = tiny_model(model_type, tie_word_embeddings=tied)
    view = rounded(dense)
    found = measured_losses(ModelView(dense), view, windows())
    linears = [named.name for named in ModelView(dense).linears(("attention", "mlp"))]
    outer = [view.embedding.name] if tied else [view.lm_head.name, view.embedding.name]
    assert list(found) == linears + outer
    for name in (linears[0], linears[-1], outer[0]):
        by_hand = copy.deepcopy(dense)
        together = [name, view.lm_head.name] if tied and name == outer[0] else [name]
        for part in together:
            by_hand.set_submodule(part, view.module(part))
        assert found[name] == pytest.approx(divergence(dense, by_hand), rel=1e-3, abs=1e-7)
        assert found[name] > 0


def test_the_dense_model_is_left_as_it_was():
    dense = tiny_model()
    modules = dict(dense.named_modules())
    measured_losses(ModelView(dense), rounded(dense), windows())
    assert dict(dense.named_modules()) == modules
    assert not any(isinstance(module, Compressed) for module in dense.modules())


@pytest.mark.parametrize("model_type", FAMILIES)
def test_what_was_cut_together_is_swapped_together(model_type):
    dense = tiny_model(model_type)
    view = ModelView(copy.deepcopy(dense))
    statistics = calibrated(dense)
    share = {"minimum": 0.25, "maximum": 0.25, "multiple_of": 32}
    stage = Prune(modules=("mlp",), **share)
    found = collect(view.model, statistics.windows, stage.needs(view).observations)
    plan = stage.plan(view, found)
    stage.apply(view, plan)
    found = measured_losses(ModelView(dense), view, windows())
    layer = view.layers[0]
    assert layer.mlp_output.name in found
    assert not any(named.name in found for named in layer.mlp_inputs)
    assert found[layer.query.name] == pytest.approx(0, abs=1e-9)
    assert found[layer.mlp_output.name] > 0
