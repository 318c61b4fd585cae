"""Experts on calibration text: which tokens count for them, and where too few arrive."""

import pytest
import torch
from tests.helpers import calibrated, tiny_model, tiny_tokenizer

import spqlm
from spqlm.layerwise.loop import LayerLoop
from spqlm.layerwise.metrics import Weighting, layer_metrics, short_of_tokens
from spqlm.model.experts import open_experts
from spqlm.model.view import ModelView
from spqlm.recipe import Recipe

AWAY = 3
LIST = "model.layers.0.mlp.experts.gate_up_proj"


@pytest.fixture
def model():
    """A mixture with an expert that no token is routed to."""
    made = tiny_model("gpt_oss")
    with torch.no_grad():
        for layer in made.model.layers:
            layer.mlp.router.bias[AWAY] = -1e6
    open_experts(made)
    return made


def test_tokens_count_for_the_experts_that_they_are_routed_to(model):
    statistics = calibrated(model)
    norms = [statistics.sensitivities[f"{LIST}.{expert}"].norms for expert in range(4)]
    reached = torch.stack([norm > 0 for norm in norms])
    # The last token of a window predicts nothing.
    assert (reached[..., :-1].sum(0) == 2).all() and not reached[..., -1].any()
    assert not reached[AWAY].any()


def test_an_expert_that_no_token_reaches_is_worth_what_one_token_would_make_it(model):
    statistics = calibrated(model)
    found = [statistics.sensitivities[f"{LIST}.{expert}"] for expert in range(4)]
    fellows = [one for index, one in enumerate(found) if index != AWAY]
    tokens = found[AWAY].norms.numel()
    mean = sum(one.output for one in fellows) * tokens / sum((o.norms > 0).sum() for o in fellows)
    torch.testing.assert_close(found[AWAY].output, mean / tokens)
    assert 0 < found[AWAY].output.sum() < min(one.output.sum() for one in fellows)


def test_experts_short_of_tokens_are_fitted_on_all_of_the_text(model):
    statistics = calibrated(model)
    layer = ModelView(model).layers[0]
    short = {named.name for named in short_of_tokens(layer, statistics.sensitivities)}
    assert f"{LIST}.{AWAY}" in short
    everything = [Weighting(range(len(statistics.windows)), 0.5)]
    step = next(iter(LayerLoop(ModelView(model), statistics.windows, "", frozen=True)))
    entered = []
    layer_of = model.get_submodule("model.layers.0.mlp.experts")
    handle = layer_of.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    [metrics] = layer_metrics(step, statistics.sensitivities, everything)
    handle.remove()
    rows = torch.cat([states.flatten(0, -2) for states in entered])
    torch.testing.assert_close(
        metrics[f"{LIST}.{AWAY}"].terms[0][0], rows.T @ rows / len(rows), rtol=1e-4, atol=1e-4
    )
    assert all(bool(torch.isfinite(metric.hessian).all()) for metric in metrics.values())


def test_such_a_mixture_is_compressed_and_the_plan_says_so(model, text_file, tmp_path):
    recipe = Recipe.from_dict(
        {
            "calibration": {"source": str(text_file), "windows": 4, "context": 32},
            "stages": [
                {
                    "budget": {
                        "formats": ["int8", {"int2": {"group_size": 32}}],
                        "embedding_formats": ["int8"],
                    }
                }
            ],
        }
    )
    result = spqlm.compress(
        model, tmp_path / "out", recipe=recipe, target_ratio=0.22, tokenizer=tiny_tokenizer()
    )
    plan = result.manifest.stages[0].plan
    assert "weights of experts have more inputs than tokens were routed to them" in plan.summary
    chosen = {change.module: change.stored_as.name for change in plan.changes}
    assert chosen[f"{LIST}.{AWAY}"] == "int2"
    assert "int8" in chosen.values()


def test_stages_that_know_no_gradients_fit_every_expert(model, text_file):
    recipe = Recipe.from_dict(
        {
            "calibration": {"source": str(text_file), "windows": 2, "context": 32},
            "stages": [{"factorize": {"keep": 0.5}}],
        }
    )
    result = spqlm.compress(model, None, recipe=recipe, tokenizer=tiny_tokenizer())
    changed = {change.module for change in result.manifest.stages[0].plan.changes}
    assert {f"{LIST}.{expert}" for expert in range(4)} <= changed
