import pytest
import torch
from tests.helpers import ORDINARY, calibrated, greedy, logits, tiny_model
from tests.layerwise.forward import hidden_states
from transformers import AutoModelForCausalLM

from spqlm.changes import Cut, Plan
from spqlm.checkpoint.quantizer import attach
from spqlm.formats.dense import Dense
from spqlm.formats.int3 import Int3
from spqlm.formats.int4 import Int4
from spqlm.formats.int8 import Int8
from spqlm.formats.low_rank import LowRank
from spqlm.model.memory import resident_bytes
from spqlm.model.view import ModelView
from spqlm.modules.linear import Compressed
from spqlm.modules.low_rank_linear import LowRankLinear
from spqlm.modules.ops import dense_weight, module_bytes
from spqlm.stages.base import Inputs
from spqlm.stages.budget import Budget

# One way each, so that every weight is cut, factorised or rounded as the test wants it.
SMALL = {
    "formats": (Int8(),),
    "embedding_formats": (Int4(group_size=32),),
    "widths": (0.5,),
    "key_value_groups": (0.5,),
    "ranks": (0.8,),
    "multiple_of": 8,
}
DENSE = {"formats": (Dense(),), "embedding_formats": (Dense(),)}


def wide_model(model_type: str, **overrides):
    """Wide enough for ranks, with heads to spare."""
    fields = {"hidden_size": 128, "head_dim": 16, "num_attention_heads": 8}
    return tiny_model(model_type, **(fields | {"num_key_value_heads": 4} | overrides))


def forced(model, asked: dict[str, dict], **fields) -> Plan:
    """A plan with other fields for some of its changes, priced or not."""
    # More tokens than any layer has inputs, so that no direction is left to chance.
    view, statistics = ModelView(model), calibrated(model, 8)
    stage = Budget(**(SMALL | {"target_bytes": 10**12} | fields))
    plan = stage.plan(view, statistics)
    for change in plan.changes:
        for field, value in asked.get(change.module.rpartition(".")[2], {}).items():
            setattr(change, field, value)
    stage.apply(view, plan, Inputs(statistics))
    return plan


def cuts_of(model) -> dict[str, dict]:
    """Half of the neurons and of the key/value groups of every layer."""
    layer, found = ModelView(model).layers[0], {}
    for unit in ("mlp", "attention"):
        units = layer.units(unit)
        for named, side in layer.sides(unit):
            module = named.module
            width = (module.out_features if side == "output" else module.in_features) // units
            cut = Cut(
                side=side,
                unit=unit,
                units=units,
                channels_per_unit=width,
                kept=units // 2,
                removed=list(range(0, units, 2)),
                refitted=side == "input",
            )
            found[named.name.rpartition(".")[2]] = {"cut": cut}
    return found


@pytest.mark.parametrize("model_type", ORDINARY)
def test_cut_rank_and_bits_together_save_and_reload(model_type, tmp_path):
    model = wide_model(model_type)
    asked = cuts_of(model)
    layer = ModelView(model).layers[0]
    query = layer.query.name.rpartition(".")[2]
    asked[query]["format"] = LowRank(rank=32, factor=Int8())
    groups = layer.key_value_groups
    forced(model, asked)
    view = ModelView(model)
    for layer in view.layers:
        assert layer.intermediate_size == 64
        assert layer.key_value_groups == groups // 2
        assert layer.query_heads == 4
        assert isinstance(layer.query.module, LowRankLinear)
        assert all(isinstance(leaf.module, Compressed) for leaf in layer.leaves)
    attach(model)
    model.save_pretrained(tmp_path / "out")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(reloaded), logits(model))
    assert greedy(reloaded) == greedy(model)


@pytest.mark.parametrize(
    ("model_type", "dtype"),
    [("llama", torch.float32), ("qwen2", torch.bfloat16), ("opt", torch.float32)],
)
def test_the_plans_bytes_are_the_models(model_type, dtype):
    model = wide_model(model_type, dtype=dtype)
    before = resident_bytes(model)
    view, statistics = ModelView(model), calibrated(model)
    eight = Budget(**SMALL, target_bytes=10**12).plan(view, statistics).bytes_saved
    target = round((before - eight) * 0.85) + 20_000
    stage = Budget(**SMALL, target_bytes=target)
    plan = stage.plan(view, statistics)
    stage.apply(view, plan, Inputs(statistics))
    assert any(change.cut is not None for change in plan.changes)
    assert resident_bytes(model) == before - plan.bytes_saved <= target
    for change in plan.changes:
        assert module_bytes(model.get_submodule(change.module)) == change.bytes_after


def test_what_was_cut_and_kept_in_floating_point_is_exact():
    # Neurons that nothing reads, and no rounding: the model computes what it did.
    model = tiny_model()
    with torch.no_grad():
        for layer in ModelView(model).layers:
            layer.mlp_output.module.weight[:, ::2] = 0
    expected = logits(model)
    cuts = {name: found for name, found in cuts_of(model).items() if found["cut"].unit == "mlp"}
    forced(model, cuts, **DENSE)
    assert all(layer.intermediate_size == 64 for layer in ModelView(model).layers)
    assert not any(isinstance(module, Compressed) for module in model.modules())
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)


def test_a_full_rank_in_floating_point_changes_nothing():
    model = wide_model("llama")
    expected, weight = logits(model), model.model.layers[1].self_attn.o_proj.weight.detach().clone()
    forced(model, {"o_proj": {"format": LowRank(rank=128, factor=Dense())}}, **DENSE)
    layer = model.model.layers[1].self_attn.o_proj
    assert isinstance(layer, LowRankLinear)
    torch.testing.assert_close(dense_weight(layer), weight, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(logits(model), expected, rtol=1e-2, atol=1e-2)


def test_sixteen_bits_everywhere_leave_the_model_as_it_is():
    for tied in (True, False):
        model = tiny_model(tie_word_embeddings=tied)
        expected = logits(model)
        forced(model, {}, **DENSE)
        assert torch.equal(logits(model), expected)
        assert ModelView(model).tied == tied


def test_biases_of_outputs_that_go_go_with_them():
    model = wide_model("opt")
    view = ModelView(model)
    bias = view.layers[0].query.module.bias.detach().clone()
    per_group = len(bias) // view.layers[0].key_value_groups
    forced(model, cuts_of(model))
    kept = bias.unflatten(0, (-1, per_group))[1::2].flatten()
    assert torch.equal(ModelView(model).layers[0].query.module.bias, kept)


def test_later_layers_are_fitted_to_what_the_earlier_ones_now_are():
    model = tiny_model()
    statistics, view = calibrated(model), ModelView(model)
    stage = Budget(formats=(Int4(group_size=32),), embedding_formats=(Dense(),))
    plan = stage.plan(view, statistics)
    seen: list[torch.Tensor] = []
    second = view.layers[1].query.module
    handle = second.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(statistics.windows)
    stage.apply(view, plan, Inputs(statistics))
    handle.remove()
    before, fitted = seen[0], seen[-1]
    assert not torch.allclose(fitted, before, rtol=1e-2)
    view.layers[1].query.module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(statistics.windows)
    torch.testing.assert_close(seen[-1], fitted, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("model_type", ["llama", "opt"])
def test_layers_that_make_up_for_those_before_end_nearer_to_the_dense_model(model_type):
    ends = []
    for share in (None, 0.0, 0.5):
        model = tiny_model(model_type, num_hidden_layers=4)
        with torch.enable_grad():
            statistics = calibrated(model, 32)
        if share is not None:
            coarse = {"formats": (Int3(group_size=32),), "embedding_formats": (Dense(),)}
            stage = Budget(target_bytes=10**12, asymmetric=share, **coarse)
            view = ModelView(model)
            stage.apply(view, stage.plan(view, statistics), Inputs(statistics))
        ends.append(hidden_states(model, statistics.windows)[-1])
    dense, plain, asymmetric = ends
    assert (asymmetric - dense).square().mean() < 0.95 * (plain - dense).square().mean()
