"""Metrics of some weights of a layer at a time."""

import weakref

import pytest
import torch
from tests.helpers import tiny_model

from spqlm.calibration.sensitivity import collect_sensitivities
from spqlm.layerwise import held_metrics
from spqlm.layerwise.held_metrics import HeldMetrics, groups_within, matrix_bytes
from spqlm.layerwise.loop import LayerLoop
from spqlm.layerwise.metrics import layer_metrics, split
from spqlm.model.mapped import bounded
from spqlm.model.view import ModelView


@pytest.fixture
def view():
    return ModelView(tiny_model("llama"))


def test_weights_are_packed_in_their_order_and_one_goes_over_the_limit(view):
    weights = view.layers[0].leaves
    assert groups_within(weights, 2, None) == [weights]
    assert groups_within(weights, 2, 0) == [[named] for named in weights]
    limit = matrix_bytes(weights[:3], 2)
    groups = groups_within(weights, 2, limit)
    assert groups[0] == weights[:3] and [n for group in groups for n in group] == weights
    assert all(matrix_bytes(group, 2) <= limit for group in groups if len(group) > 1)


@pytest.mark.parametrize("frozen", [True, False])
def test_metrics_are_those_of_all_weights_together(view, frozen):
    windows = torch.randint(0, 64, (4, 16))
    names = [named.name for named in view.leaves(("attention", "mlp"))]
    sensitivities = collect_sensitivities(view, windows, names)
    weightings = split(len(windows), 0.5)
    together = [
        layer_metrics(step, sensitivities, weightings)
        for step in LayerLoop(view, windows, "test", frozen=frozen)
    ]
    loop = LayerLoop(view, windows, "test", frozen=frozen)
    with bounded(moments=0):
        for step, expected in zip(loop, together, strict=True):
            held = HeldMetrics(step, sensitivities, weightings, noise=weightings[1])
            leaves = step.layer.leaves
            assert list(held.groups(leaves)) == [[named] for named in leaves]
            # Any one may be asked for again.
            for named in reversed(leaves):
                for found, metrics in zip(held.by_weighting, expected, strict=True):
                    again, metric = found[named.name], metrics[named.name]
                    assert torch.equal(again.hessian, metric.hessian)
                    assert torch.equal(again.output, metric.output)
            assert set(held.by_weighting[0]) == {named.name for named in leaves}
            with pytest.raises(KeyError):
                held.by_weighting[0]["another"]


def test_memory_of_metrics_goes_back_before_the_next_ones_take_theirs(view, monkeypatch):
    windows = torch.randint(0, 64, (4, 16))
    [layer, *_] = view.layers
    sensitivities = collect_sensitivities(view, windows, [named.name for named in layer.leaves])
    earlier, given_back = [], []

    def trim():
        given_back.append([found() is None for found in earlier])

    monkeypatch.setattr(held_metrics, "trim", trim)
    with bounded(moments=0):
        step = next(iter(LayerLoop(view, windows, "test", frozen=True)))
        held = HeldMetrics(step, sensitivities, split(len(windows), 0.5))
        for [named] in held.groups(layer.leaves):
            for metrics in held.by_weighting:
                assert metrics[named.name].factor.isfinite().all()
                earlier.append(weakref.ref(metrics[named.name]))
    assert len(given_back) == len(layer.leaves)
    assert [len(gone) for gone in given_back] == [2 * n for n in range(len(layer.leaves))]
    assert all(all(gone) for gone in given_back)


def test_a_weight_without_metrics_is_not_forgotten(view):
    windows = torch.randint(0, 64, (4, 16))
    [first, *others] = view.layers[0].leaves
    sensitivities = collect_sensitivities(view, windows, [named.name for named in others])
    step = next(iter(LayerLoop(view, windows, "test", frozen=True)))
    held = HeldMetrics(step, sensitivities, split(len(windows), 0.5))
    assert list(held.groups([first, *others])) == [others, [first]]
