"""Channels are evened out, and the model computes what it did."""

import copy

import pytest
import torch
from tests.helpers import format_of, logits, tiny_model, tiny_tokenizer

import spqlm
from spqlm.calibration.sensitivity import collect_sensitivities
from spqlm.calibration.statistics import Statistics
from spqlm.changes import Change, Plan, Scaled
from spqlm.decoding.int8_activations import round_activations
from spqlm.errors import SpqError
from spqlm.formats.int8 import Int8
from spqlm.model.experts import open_experts
from spqlm.model.view import ModelView
from spqlm.recipe import Recipe
from spqlm.stages.quantize import Quantize
from spqlm.stages.smooth import NOT_ALONE, NOT_EXACT, NOT_LINKED, Smooth

WINDOWS = torch.randint(3, 250, (4, 32), generator=torch.Generator().manual_seed(3))
# Strength 1 looks at inputs alone, so that channels that were made to stand out do.
INPUTS_ALONE = Smooth(strength=1.0)
CHANNEL, TIMES = 7, 50.0
# What is left alone of two layers, and why. Gemma's norms multiply by 1 + weight.
LEFT = {
    "llama": {},
    "qwen2": {},
    "opt": {},
    "cohere2": {},
    "gemma3_text": {NOT_EXACT: 10},
    "starcoder2": {NOT_EXACT: 2},
    "gpt_neox": {NOT_EXACT: 2, NOT_LINKED: 2},
    "phi3": {NOT_LINKED: 4},
    "olmo2": {NOT_LINKED: 10},
    "mixtral": {NOT_LINKED: 16},
    "gemma4_text": {NOT_ALONE: 18},
}


@torch.no_grad()
def with_outliers(model_type="llama", **options):
    """A model in which one channel of whatever writes some is larger than all others."""
    model = tiny_model(model_type, **options)
    open_experts(model)
    for name, parameter in model.named_parameters():
        rows = ("v_proj.weight", "up_proj.weight", "c_fc.weight", "fc1.weight", "h_to_4h.weight")
        if (parameter.ndim == 1 and "norm" in name and "weight" in name) or name.endswith(rows):
            parameter[CHANNEL] = (parameter[CHANNEL] + 0.1) * TIMES
    return model


def planned(stage, model):
    return stage.plan(ModelView(model), Statistics(windows=WINDOWS))


def run(stage, model):
    plan = planned(stage, model)
    stage.apply(ModelView(model), plan)
    return plan


def readers(plan):
    return {reader for change in plan.changes for reader in change.scaled.readers}


@pytest.mark.parametrize(
    ("model_type", "dtype"),
    [*((name, torch.float32) for name in LEFT), ("llama", torch.bfloat16), ("opt", torch.bfloat16)],
    ids=str,
)
def test_logits_stay_bit_for_bit(model_type, dtype):
    model = with_outliers(model_type, dtype=dtype)
    before, weights = logits(model), copy.deepcopy(model.state_dict())
    plan = run(INPUTS_ALONE, model)
    left = LEFT[model_type]
    every = len(ModelView(model).linears(("attention", "mlp")))
    smoothed = every - sum(left.values())
    assert len(readers(plan)) == smoothed
    assert plan.summary.startswith(f"inputs of {smoothed} of {every} weights smoothed")
    for reason, count in left.items():
        assert f"{count} {reason}" in plan.summary
    assert torch.equal(logits(model), before)
    changed = [n for n, t in model.state_dict().items() if not torch.equal(t, weights[n])]
    assert bool(changed) == bool(smoothed)
    assert plan.bytes_saved == 0


def test_a_plan_changes_nothing():
    model = with_outliers()
    before = copy.deepcopy(model.state_dict())
    assert planned(INPUTS_ALONE, model).changes
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


@torch.no_grad()
def test_what_enters_is_even_afterwards():
    model = with_outliers()
    spread = {}

    def watch(name):
        def hook(_, inputs):
            largest = inputs[0].abs().amax((0, 1))
            spread.setdefault(name, []).append(float(largest[CHANNEL] / largest.median()))

        return hook

    for named in ModelView(model).linears(("attention", "mlp")):
        named.module.register_forward_pre_hook(watch(named.name))
    logits(model)
    run(INPUTS_ALONE, model)
    spread = {name: found[:1] for name, found in spread.items()}
    logits(model)
    for before, after in spread.values():
        assert before > 5 and after < before / 4


def test_weights_that_another_model_shares_are_not_touched():
    model = with_outliers()
    other = copy.copy(model.model.layers[0].self_attn.q_proj.weight)
    shared = model.model.layers[0].self_attn.q_proj.weight
    run(INPUTS_ALONE, model)
    assert torch.equal(shared, other)
    assert model.model.layers[0].self_attn.q_proj.weight is not shared
    assert model.model.layers[0].self_attn.q_proj.weight.requires_grad == shared.requires_grad


def test_only_the_weights_that_were_asked_for():
    found = readers(run(Smooth(strength=1.0, modules=("mlp",)), with_outliers()))
    assert len(found) == 6 and all(".mlp." in name for name in found)


def uneven():
    """A tiny model whose norms give one channel 64 times as large, to weights 64 times as small."""
    model, changes = tiny_model(), []
    exponents = [-6 if channel == CHANNEL else 0 for channel in range(64)]
    for layer in ModelView(model).layers:
        pairs = [("input", layer.together[0]), ("post_attention", layer.together[1])]
        for norm, together in pairs:
            names = [named.name for named in together]
            scaled = Scaled(readers=names, exponents=exponents, width=1)
            module = f"{layer.name}.{norm}_layernorm"
            changes.append(Change(module=module, bytes_before=0, bytes_after=0, scaled=scaled))
    Smooth().apply(ModelView(model), Plan(stage="smooth", changes=changes))
    return model


@torch.no_grad()
def test_int8_activations_lose_less():
    exact, losses = logits(uneven()), []
    for stages in ([], [Smooth(strength=0.5)]):
        model = uneven()
        for stage in stages:
            run(stage, model)
        run(Quantize(modules=("attention", "mlp")), model)
        losses.append(float((logits(round_activations(model)) - exact).square().mean()))
    assert losses[1] < losses[0] / 10


@torch.no_grad()
def test_the_strength_that_is_searched_loses_no_more_than_any_that_is_given():
    exact = logits(uneven())
    view = ModelView(uneven())
    names = Smooth().needs(view).sensitivities
    assert names == {named.name for named in view.linears(("attention", "mlp"))}

    def loss(stage):
        model = uneven()
        with torch.enable_grad():
            found = collect_sensitivities(ModelView(model), WINDOWS, names)
        statistics = Statistics(windows=WINDOWS, sensitivities=found)
        plan = stage.plan(ModelView(model), statistics)
        stage.apply(ModelView(model), plan)
        run(Quantize(modules=("attention", "mlp")), model)
        error = (logits(round_activations(model)) - exact).square().mean()
        return float(error), plan

    given = [loss(Smooth(strength=strength))[0] for strength in (0.2, 0.5, 0.8)]
    found, plan = loss(Smooth())
    assert found < 1.2 * min(given) and found < max(given)
    gains = [change.scaled.gain for change in plan.changes]
    assert all(gain > 0 for gain in gains)
    assert f"that saves {sum(gains):.4f} nats" in plan.summary
    # Smoothing alone loses nothing, so it is no part of what a plan is predicted to lose.
    assert plan.predicted_loss is None


def test_it_goes_before_other_stages_of_a_recipe(text_file, tmp_path):
    recipe = Recipe.from_dict(
        {
            "calibration": {"source": str(text_file), "windows": 2, "context": 32},
            "stages": [{"smooth": {"strength": 0.5}}, {"budget": {"formats": ["int8"]}}],
        }
    )
    out = tmp_path / "out"
    model = with_outliers()
    made = spqlm.compress(model, out, recipe=recipe, target_ratio=0.5, tokenizer=tiny_tokenizer())
    loaded = spqlm.load(out)
    assert torch.equal(logits(loaded), logits(made.model))
    assert format_of(loaded.get_submodule("model.layers.0.mlp.up_proj")) == Int8()
    smoothed = made.manifest.stages[0].plan
    assert readers(smoothed) and spqlm.Recipe.from_dict(made.manifest.recipe) is not None


def test_integers_are_left_alone():
    model = with_outliers()
    run(Quantize(modules=("mlp",)), model)
    plan = run(INPUTS_ALONE, model)
    assert len(readers(plan)) == 8
    assert f"6 {NOT_LINKED}" in plan.summary


@pytest.mark.parametrize("strength", [-0.1, 1.1, "much"])
def test_a_strength_is_a_share(strength):
    with pytest.raises(SpqError, match="strength"):
        Recipe.from_dict({"stages": [{"smooth": {"strength": strength}}]})
