import math

import pytest
import torch
from tests.helpers import format_of, logits, tiny_model

from spqlm.calibration.statistics import collect
from spqlm.changes import Plan
from spqlm.formats.int8 import Int8
from spqlm.model.memory import resident_bytes
from spqlm.model.view import ModelView
from spqlm.stages.prune import Prune
from spqlm.stages.quantize import Quantize

HEADS, GROUPS, HEAD_DIM, WIDTH = 8, 4, 8, 128
WINDOWS = torch.randint(3, 250, (4, 24), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def model():
    """Three layers whose activations differ in strength, and by neuron and head in shape."""
    made = tiny_model(
        num_hidden_layers=3,
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
        head_dim=HEAD_DIM,
    )
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for strength, layer in zip((3.0, 1.0, 0.4), made.model.layers, strict=True):
            for linear in (layer.mlp.up_proj, layer.self_attn.v_proj):
                rows = torch.rand(linear.out_features, 1, generator=generator) + 0.5
                linear.weight *= strength * rows
    return made


def plan(stage, model, windows=WINDOWS):
    view = ModelView(model)
    return stage.plan(view, collect(model, windows, stage.needs(view).observations))


def run(stage, model):
    made = plan(stage, model)
    stage.apply(ModelView(model), made)
    return made


@torch.no_grad()
def activations(model, modules, side):
    """What leaves or enters each module over all windows, float64 [tokens, channels]."""
    seen = {module: [] for module in modules}
    handles = [
        module.register_forward_hook(
            lambda module, inputs, output: seen[module].append(
                (output if side == "output" else inputs[0]).flatten(0, -2).double()
            )
        )
        for module in modules
    ]
    for window in WINDOWS:
        model(input_ids=window[None])
    for handle in handles:
        handle.remove()
    return [torch.cat(seen[module]) for module in modules]


def neuron_scores(model, score):
    modules = [layer.mlp.up_proj for layer in model.model.layers]
    values = activations(model, modules, "output")
    if score == "l1":
        return [value.abs().mean(0) for value in values]
    return [value.square().mean(0).sqrt() for value in values]


def group_scores(model, score):
    modules = [layer.self_attn.o_proj for layer in model.model.layers]
    # A key/value group owns HEADS / GROUPS neighbouring query heads.
    values = [v.reshape(len(v), GROUPS, -1) for v in activations(model, modules, "input")]
    if score == "l1":
        return [value.abs().mean((0, 2)) for value in values]
    return [value.square().mean((0, 2)).sqrt() for value in values]


def reference(scores, minimum, maximum):
    """Removed units per layer by METHOD's formulas."""
    means = [float(score.mean()) for score in scores]
    top, bottom = math.log(max(means)), math.log(min(means))
    removed = []
    for score, mean in zip(scores, means, strict=True):
        ratio = minimum + (maximum - minimum) * (top - math.log(mean)) / (top - bottom)
        removed.append(sorted(score.argsort()[: round(ratio * len(score))].tolist()))
    return removed


def removed_by_layer(made, suffix):
    found = {
        c.module.split(".")[2]: c.cut.removed for c in made.changes if c.module.endswith(suffix)
    }
    return [found.get(str(index), []) for index in range(3)]


@pytest.mark.parametrize("score", ["l1", "l2"])
@pytest.mark.parametrize(("minimum", "maximum"), [(0.0, 0.05), (0.1, 0.4), (0.25, 0.25)])
def test_the_lowest_scored_neurons_of_each_layer_go(model, score, minimum, maximum):
    expected = reference(neuron_scores(model, score), minimum, maximum)
    made = plan(Prune(minimum=minimum, maximum=maximum, score=score, multiple_of=1), model)
    for projection in ("gate_proj", "up_proj", "down_proj"):
        assert removed_by_layer(made, projection) == expected
    assert len(expected[0]) == round(minimum * WIDTH)  # the strongest layer
    assert len(expected[2]) == round(maximum * WIDTH)  # the weakest


def test_l1_and_l2_disagree_about_a_neuron_that_seldom_fires(model):
    """Silent but for one token: weak by its mean magnitude, not by its mean square."""
    spiked = activations(model, [model.model.layers[0].mlp.up_proj], "output")[0]
    l1, l2 = spiked.abs().mean(0), spiked.square().mean(0).sqrt()
    assert l1.argsort()[:40].tolist() != l2.argsort()[:40].tolist()
    options = {"minimum": 0.3, "maximum": 0.3, "multiple_of": 1}
    by_l1 = plan(Prune(score="l1", **options), model)
    by_l2 = plan(Prune(score="l2", **options), model)
    assert removed_by_layer(by_l1, "up_proj") != removed_by_layer(by_l2, "up_proj")


@pytest.mark.parametrize("score", ["l1", "l2"])
def test_the_lowest_scored_key_value_groups_go(model, score):
    expected = reference(group_scores(model, score), 0.25, 0.75)
    made = plan(Prune(minimum=0.25, maximum=0.75, score=score, modules=("attention",)), model)
    assert [len(layer) for layer in expected][::2] == [1, 3]
    for projection in ("q_proj", "k_proj", "v_proj", "o_proj"):
        assert removed_by_layer(made, projection) == expected


def test_neurons_lose_their_rows_and_columns_together(model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    made = run(Prune(minimum=0.1, maximum=0.4, multiple_of=1), model)
    for index, removed in enumerate(removed_by_layer(made, "up_proj")):
        kept = [neuron for neuron in range(WIDTH) if neuron not in removed]
        mlp, name = model.model.layers[index].mlp, f"model.layers.{index}.mlp"
        assert torch.equal(mlp.gate_proj.weight, before[f"{name}.gate_proj.weight"][kept])
        assert torch.equal(mlp.up_proj.weight, before[f"{name}.up_proj.weight"][kept])
        assert torch.equal(mlp.down_proj.weight, before[f"{name}.down_proj.weight"][:, kept])
        assert mlp.gate_proj.out_features == mlp.down_proj.in_features == len(kept)


def test_groups_lose_their_query_heads_key_value_and_output_columns(model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    made = run(Prune(minimum=0.25, maximum=0.5, modules=("attention",)), model)
    heads = HEADS // GROUPS
    for index, removed in enumerate(removed_by_layer(made, "k_proj")):
        kept = [group for group in range(GROUPS) if group not in removed]
        assert len(kept) < GROUPS
        keys = [g * HEAD_DIM + i for g in kept for i in range(HEAD_DIM)]
        queries = [g * heads * HEAD_DIM + i for g in kept for i in range(heads * HEAD_DIM)]
        attention, name = model.model.layers[index].self_attn, f"model.layers.{index}.self_attn"
        assert torch.equal(attention.q_proj.weight, before[f"{name}.q_proj.weight"][queries])
        assert torch.equal(attention.k_proj.weight, before[f"{name}.k_proj.weight"][keys])
        assert torch.equal(attention.v_proj.weight, before[f"{name}.v_proj.weight"][keys])
        assert torch.equal(attention.o_proj.weight, before[f"{name}.o_proj.weight"][:, queries])


def test_dropping_a_silent_group_leaves_the_logits(model):
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.v_proj.weight[2 * HEAD_DIM : 3 * HEAD_DIM] = 0
    expected = logits(model)
    made = run(Prune(minimum=0.25, maximum=0.25, modules=("attention",)), model)
    assert removed_by_layer(made, "k_proj") == [[2], [2], [2]]
    torch.testing.assert_close(logits(model), expected, atol=1e-4, rtol=1e-4)


def test_both_units_in_one_pass_equal_each_alone(model):
    options = {"minimum": 0.25, "maximum": 0.5, "multiple_of": 1}
    both = plan(Prune(modules=("mlp", "attention"), **options), model)
    alone = [
        plan(Prune(modules=("mlp",), **options), model),
        plan(Prune(modules=("attention",), **options), model),
    ]
    assert both.changes == alone[0].changes + alone[1].changes
    before = resident_bytes(model)
    Prune(modules=("mlp", "attention"), **options).apply(ModelView(model), both)
    assert resident_bytes(model) == before - both.bytes_saved
    assert torch.isfinite(logits(model)).all()


def test_equal_bounds_take_the_same_share_of_every_layer(model):
    made = plan(Prune(minimum=0.25, maximum=0.25, multiple_of=1), model)
    assert [len(layer) for layer in removed_by_layer(made, "up_proj")] == [32, 32, 32]


def test_zero_ratios_prune_nothing(model):
    assert plan(Prune(minimum=0, maximum=0, modules=("mlp", "attention")), model).changes == []


@pytest.mark.parametrize("multiple_of", [1, 32])
def test_no_ratio_empties_a_layer(model, multiple_of):
    stage = Prune(
        minimum=0.999, maximum=0.999, multiple_of=multiple_of, modules=("mlp", "attention")
    )
    run(stage, model)
    for layer in ModelView(model).layers:
        assert layer.intermediate_size == multiple_of
        assert layer.key_value_groups == 1
    assert torch.isfinite(logits(model)).all()


def test_widths_snap_to_the_nearest_multiple(model):
    exact = reference(neuron_scores(model, "l1"), 0.1, 0.5)
    run(Prune(minimum=0.1, maximum=0.5, multiple_of=16), model)
    widths = [layer.intermediate_size for layer in ModelView(model).layers]
    for width, removed in zip(widths, exact, strict=True):
        assert width % 16 == 0
        assert abs(width - (WIDTH - len(removed))) <= 8
    assert widths[0] > widths[2]


def test_pruning_int8_layers_keeps_the_codes_of_what_stays(model):
    quantize = Quantize()
    quantize.apply(ModelView(model), quantize.plan(ModelView(model), None))
    before = [layer.mlp.up_proj.codes.clone() for layer in model.model.layers]
    made = run(Prune(minimum=0.25, maximum=0.5, multiple_of=8), model)
    for index, removed in enumerate(removed_by_layer(made, "up_proj")):
        kept = [neuron for neuron in range(WIDTH) if neuron not in removed]
        layer = model.model.layers[index].mlp.up_proj
        assert format_of(layer) == Int8() and removed
        assert torch.equal(layer.codes, before[index][kept])


def test_planning_changes_nothing_and_the_plan_survives_json(model):
    expected = logits(model)
    stage = Prune(minimum=0.1, maximum=0.4, modules=("mlp", "attention"))
    made = plan(stage, model)
    assert torch.equal(logits(model), expected)
    again = Plan.model_validate_json(made.model_dump_json())
    assert again == made
    stage.apply(ModelView(model), again)
    widths = {c.module: c.cut.kept for c in made.changes if c.module.endswith("up_proj")}
    assert widths
    for name, width in widths.items():
        assert model.get_submodule(name).out_features == width
