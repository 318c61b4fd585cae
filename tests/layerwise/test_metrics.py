import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.helpers import calibrated, tiny_model
from torch import Tensor
from torch.nn import functional

from spqlm.layerwise.loop import LayerLoop
from spqlm.layerwise.metrics import (
    RAISED_DAMPING,
    Weighting,
    layer_metrics,
    outer_metric,
    split,
)
from spqlm.layerwise.walk import CHUNK
from spqlm.model.view import ModelView
from spqlm.numerics.gptq import DAMPING

COUNT, CONTEXT = 6, 24
EMBEDDING = "model.embed_tokens"


def autograd(model, windows: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """By linear layer its inputs and output gradients, float64 [windows, context, features]."""
    model = copy.deepcopy(model).double()
    held: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def keep(name):
        def hook(_, arguments, output):
            output.retain_grad()
            held.setdefault(name, []).append((arguments[0].detach(), output))

        return hook

    for named in [*ModelView(model).linears(), ModelView(model).embedding]:
        named.module.register_forward_hook(keep(named.name))
    for ids in windows:
        logits = model(ids[None]).logits[0]
        functional.cross_entropy(logits[:-1], ids[1:], reduction="sum").backward()
    shape = (len(windows), windows.shape[1], -1)
    return {
        name: (
            torch.cat([x.flatten() for x, _ in pairs]).reshape(shape),
            torch.cat([y.grad.flatten() for _, y in pairs]).reshape(shape),
        )
        for name, pairs in held.items()
    }


def expected_hessian(x: Tensor, g: Tensor, windows: range, power: float) -> Tensor:
    """E[‖g‖²ᵖ x xᵀ] / E[‖g‖²ᵖ] over some windows."""
    x, g = x[windows.start : windows.stop].flatten(0, 1), g[windows.start : windows.stop]
    weights = g.flatten(0, 1).square().sum(1) ** power
    return (x.T * weights) @ x / weights.sum()


def metrics_of(model, statistics, weightings) -> list[dict]:
    """Of all layers, for each weighting."""
    found = [{} for _ in weightings]
    for step in LayerLoop(ModelView(model), statistics.windows, "test", frozen=True):
        metrics = layer_metrics(step, statistics.sensitivities, weightings)
        for whole, part in zip(found, metrics, strict=True):
            whole.update(part)
    return found


def assert_near(found: Tensor, expected: Tensor) -> None:
    assert found.dtype == torch.float32
    largest = float(expected.abs().max())
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4 * largest)


# --- which tokens count --------------------------------------------------------------------------


@given(st.integers(1, 200), st.floats(0, 1))
def test_what_is_priced_is_held_out_from_what_is_fitted(count, power):
    fit, price = split(count, power)
    assert (fit.power, price.power) == (power, 1.0)
    if count < 4:
        assert list(fit.windows) == list(price.windows) == list(range(count))
    else:
        assert [*fit.windows, *price.windows] == list(range(count))
        assert len(price.windows) == count // 4


def test_weights_are_a_power_of_the_gradient_within_the_windows():
    norms = torch.tensor([[4.0, 9.0], [0.0, 16.0], [1.0, 25.0]])
    weighting = Weighting(range(1, 3), 0.5)
    assert weighting.weights(norms, slice(0, 6)).tolist() == [0, 0, 0, 4, 1, 5]
    assert weighting.weights(norms, slice(2, 6)).tolist() == [0, 4, 1, 5]
    assert weighting.weights(norms, slice(1, 4)).tolist() == [0, 0, 4]
    # Some of the tokens, in any order.
    assert weighting.weights(norms, torch.tensor([5, 0, 3])).tolist() == [5, 0, 4]
    # A token counts in the plain moment whatever its gradient.
    assert Weighting(range(3), 0).weights(norms, slice(0, 6)).tolist() == [1] * 6


# --- layers of the decoder -----------------------------------------------------------------------


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("model_type", ["llama", "opt"])
def test_matrices_equal_those_of_autograd_in_float64(model_type, power):
    model = tiny_model(model_type)
    statistics = calibrated(model, COUNT, CONTEXT)
    # Across the border between two chunks of the walk.
    windows = range(1, CHUNK + 1)
    [found] = metrics_of(model, statistics, [Weighting(windows, power)])
    expected = autograd(model, statistics.windows)
    assert set(found) == {named.name for layer in ModelView(model).layers for named in layer.leaves}
    for name, metric in found.items():
        x, g = expected[name]
        [(hessian, output)] = metric.terms
        assert_near(hessian, expected_hessian(x, g, windows, power))
        assert_near(output, g.flatten(0, 1).square().mean(0))


def test_several_weightings_in_one_pass_are_what_each_is_alone():
    model = tiny_model()
    statistics = calibrated(model, COUNT, CONTEXT)
    weightings = split(COUNT, 0.5)
    together = metrics_of(model, statistics, weightings)
    for weighting, found in zip(weightings, together, strict=True):
        [alone] = metrics_of(model, statistics, [weighting])
        for name, metric in found.items():
            assert torch.equal(metric.terms[0][0], alone[name].terms[0][0])


def test_only_layers_with_sensitivities_have_a_metric():
    model = tiny_model()
    statistics = calibrated(model, 2, CONTEXT)
    first = ModelView(model).layers[0]
    statistics.sensitivities.pop(first.query.name)
    step = next(iter(LayerLoop(ModelView(model), statistics.windows, "test")))
    whole = Weighting(range(2), 1)
    [found] = layer_metrics(step, statistics.sensitivities, [whole])
    assert set(found) == {named.name for named in first.leaves} - {first.query.name}
    assert layer_metrics(step, {}, [whole]) == [{}]


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_a_layer_without_gradients_has_a_finite_metric(power):
    model = tiny_model()
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight.zero_()
    statistics = calibrated(model, 2, CONTEXT)
    [found] = metrics_of(model, statistics, [Weighting(range(2), power)])
    [(hessian, output)] = found["model.layers.0.self_attn.v_proj"].terms
    assert bool(torch.isfinite(hessian).all())
    assert not output.any()
    assert bool(hessian.any()) == (power == 0)


@pytest.mark.parametrize(("windows", "raised"), [(2, {64, 128}), (3, {128}), (6, set())])
def test_damping_is_raised_where_tokens_are_fewer_than_inputs(windows, raised):
    # 23 of the 24 tokens of a window have a gradient: 46, 69 and 138 tokens.
    model = tiny_model()
    statistics = calibrated(model, windows, CONTEXT)
    [found] = metrics_of(model, statistics, [Weighting(range(windows), 1.0)])
    assert {len(metric.hessian) for metric in found.values()} == {64, 128}
    for metric in found.values():
        expected = RAISED_DAMPING if len(metric.hessian) in raised else DAMPING
        assert metric.damping == expected


# --- embedding and lm_head -----------------------------------------------------------------------


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_the_head_is_like_any_linear_layer(power):
    model = tiny_model(tie_word_embeddings=False)
    statistics = calibrated(model, COUNT, CONTEXT)
    windows = range(2, 5)
    found = outer_metric(
        ModelView(model), "lm_head", statistics.sensitivities, Weighting(windows, power)
    )
    x, g = autograd(model, statistics.windows)["lm_head"]
    [(hessian, output)] = found.terms
    assert_near(hessian, expected_hessian(x, g, windows, power))
    assert_near(output, g.flatten(0, 1).square().mean(0))
    assert found.damping == DAMPING


@pytest.mark.parametrize("model_type", ["llama", "opt"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_pair_has_a_term_for_each_use(model_type, tied):
    model = tiny_model(model_type, tie_word_embeddings=tied)
    statistics = calibrated(model, COUNT, CONTEXT)
    view, whole = ModelView(model), Weighting(range(COUNT), 1.0)
    found = outer_metric(view, view.embedding.name, statistics.sensitivities, whole)
    assert len(found.terms) == (2 if tied else 1)
    held = autograd(model, statistics.windows)
    _, g = held[view.embedding.name]
    hessian, output = found.terms[0]
    assert_near(hessian, torch.diag(g.flatten(0, 1).square().mean(0)))
    counts = torch.bincount(statistics.windows.flatten(), minlength=len(output))
    assert torch.equal(output, counts / statistics.windows.numel())
    if tied:
        x, g = held["lm_head"]
        assert_near(found.terms[1][0], expected_hessian(x, g, range(COUNT), 1.0))
        assert_near(found.terms[1][1], g.flatten(0, 1).square().mean(0))


@pytest.mark.parametrize("tied", [True, False])
def test_few_tokens_raise_the_damping_of_the_head(tied):
    model = tiny_model(tie_word_embeddings=tied)
    statistics = calibrated(model, 1, CONTEXT)
    name = EMBEDDING if tied else "lm_head"
    found = outer_metric(ModelView(model), name, statistics.sensitivities, Weighting(range(1), 1.0))
    assert found.damping == RAISED_DAMPING
