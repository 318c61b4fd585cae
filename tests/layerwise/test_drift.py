import pytest
import torch
from tests.helpers import calibrated
from tests.layerwise.forward import linear_inputs, made

from spqlm.layerwise.loop import LayerLoop
from spqlm.layerwise.metrics import Weighting, drift_of, layer_metrics
from spqlm.model.view import ModelView

COUNT = 6


def halved(step) -> None:
    """Something that the layers behind it notice."""
    named = step.layer.mlp_output
    module = torch.nn.Linear(named.module.in_features, named.module.out_features, bias=False)
    module.weight.data = named.module.weight.data * 0.5
    step.replace(named.name, module)


def followed(model, statistics, weighting, *, dense: bool) -> dict[str, torch.Tensor | None]:
    found = {}
    for step in LayerLoop(ModelView(model), statistics.windows, "test", dense=dense):
        drift = drift_of(step.layer, statistics.sensitivities, weighting)
        layer_metrics(step, statistics.sensitivities, [weighting], drift)
        found |= {named.name: drift.mean(named.name) for named in step.layer.leaves}
        halved(step)
    return found


@torch.no_grad()
@pytest.mark.parametrize("model_type", ["llama", "opt", "gemma3_text"])
def test_it_is_what_it_says_over_the_tokens_that_count(model_type):
    model = made(model_type)
    with torch.enable_grad():
        statistics = calibrated(model, COUNT)
    weighting = Weighting(range(1, COUNT), 0.5)
    before = linear_inputs(model, statistics.windows)
    found = followed(model, statistics, weighting, dense=True)
    for layer in ModelView(model).layers[1:2]:
        for named in layer.leaves:
            # The layer's own change comes behind most of its inputs, and before none of these.
            if named.name == layer.mlp_output.name:
                continue
            norms = statistics.sensitivities[named.name].norms.clone()
            norms[0] = 0
            weights = norms.flatten().sqrt().double()
            dense = before[named.name].flatten(0, -2).double()
            now = linear_inputs(model, statistics.windows)[named.name].flatten(0, -2).double()
            expected = ((dense - now).T * weights) @ now / weights.sum()
            assert float(expected.abs().max()) > 0
            torch.testing.assert_close(found[named.name].double(), expected, rtol=1e-3, atol=1e-5)


def test_of_the_first_layer_nothing_has_moved():
    model = made("llama")
    found = followed(model, calibrated(model, COUNT), Weighting(range(COUNT), 1.0), dense=True)
    first = [named.name for named in ModelView(model).layers[0].leaves]
    assert all(not found[name].any() for name in first)


def test_without_the_dense_model_nothing_is_counted():
    model = made("llama")
    found = followed(model, calibrated(model, COUNT), Weighting(range(COUNT), 1.0), dense=False)
    assert set(found.values()) == {None}
