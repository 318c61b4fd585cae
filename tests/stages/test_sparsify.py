import copy
import re

import pytest
import torch
from tests.helpers import calibrated, format_of, logits, tiny_model, tiny_tokenizer

import spqlm
from spqlm.errors import SpqError
from spqlm.formats.group_sparse import GroupSparse
from spqlm.model.view import ModelView
from spqlm.modules.ops import dense_weight, module_bytes
from spqlm.recipe import Recipe
from spqlm.stages.base import Inputs
from spqlm.stages.sparsify import Sparsify
from spqlm.training import reconstruction
from spqlm.training.reconstruction import Reconstruction

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "opt", "gemma3_text")
ONE_SHOT = Reconstruction(steps=0)
SHORT = Reconstruction(steps=12, batch_size=2, check_every=4, learning_rate=0.1)


def run(model, statistics=None, **fields):
    statistics = statistics or calibrated(model, count=8)
    view, stage = ModelView(model), Sparsify(**({"reconstruction": ONE_SHOT} | fields))
    plan = stage.plan(view, statistics)
    stage.apply(view, plan, Inputs(statistics))
    return view, plan


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_weight_is_stored_without_the_share_of_groups_that_goes(model_type):
    view, plan = run(tiny_model(model_type), sparsity=0.5)
    for layer in view.layers:
        for named in layer.linears:
            form = format_of(named.module)
            assert isinstance(form, GroupSparse)
            assert form.sparsity(*named.module.stored_weight.shape) == pytest.approx(0.5)
    for change in plan.changes:
        assert module_bytes(view.module(change.module)) == change.bytes_after
    assert bool(torch.isfinite(logits(view.model)).all())


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [8, 16, 32, 64])
@pytest.mark.parametrize("pattern", ["row_balanced", "free"])
def test_the_plan_says_what_is_stored(bits, group_size, pattern):
    view, plan = run(
        tiny_model(hidden_size=192, num_attention_heads=8, num_key_value_heads=2),
        bits=bits,
        group_size=group_size,
        pattern=pattern,
        sparsity=0.4,
        zero_point=bits == 8,
    )
    for change in plan.changes:
        layer = view.module(change.module)
        assert module_bytes(layer) == change.bytes_after
        assert layer.format == change.format
        kept = layer.stored_weight.keep.sum(1)
        assert int(kept.min()) >= 1
        assert pattern == "free" or int(kept.min()) == int(kept.max())


def test_training_brings_layers_nearer_to_the_dense_ones(caplog):
    model = tiny_model()
    statistics = calibrated(model, count=16)
    one_shot, _ = run(copy.deepcopy(model), statistics)
    with caplog.at_level("INFO"):
        trained, _ = run(model, statistics, reconstruction=SHORT)
    losses = [record.args[1:] for record in caplog.records if "held-out" in record.msg]
    assert len(losses) == 2 and all(after < before for before, after in losses)
    first = trained.layers[0].query.name
    one, other = one_shot.module(first), trained.module(first)
    assert torch.equal(one.mask, other.mask)
    assert not torch.equal(one.codes, other.codes)


def test_gradients_too_small_to_be_squared_leave_all_tokens_alike():
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight *= 1e-24
    view, _ = run(model, calibrated(model, count=8), reconstruction=SHORT)
    assert bool(torch.isfinite(logits(view.model)).all())


def test_sparsity_can_go_where_it_costs_least():
    model = tiny_model()
    with torch.no_grad():
        ModelView(model).layers[1].mlp_output.module.weight.mul_(1e-3)
    view, plan = run(model, allocation="loss", sparsity=0.5)
    shares = {
        change.module: change.format.sparsity(*view.module(change.module).stored_weight.shape)
        for change in plan.changes
    }
    assert shares[view.layers[1].mlp_output.name] == 0.875
    assert min(shares.values()) < 0.3
    total = sum(view.module(name).format.kept for name in shares)
    groups = sum(dense_weight(view.module(name)).numel() // 16 for name in shares)
    assert total / groups == pytest.approx(0.5, abs=0.06)


def test_modules_that_were_not_asked_for_stay_dense():
    view, _ = run(tiny_model(), modules=("mlp",), reconstruction=SHORT)
    layer = view.layers[0]
    assert isinstance(layer.query.module, torch.nn.Linear)
    assert isinstance(format_of(layer.mlp_output.module), GroupSparse)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"group_size": 64, "sparsity": 0.6}, "would empty rows of .* at most 0.00"),
        ({"group_size": 32, "sparsity": 0.9}, "would empty rows of .* at most 0.50"),
    ],
)
def test_a_sparsity_that_would_empty_a_row_is_refused(fields, words):
    with pytest.raises(SpqError, match=words):
        run(tiny_model(), **fields)


def test_a_width_that_the_group_size_does_not_divide_is_refused():
    model = tiny_model(intermediate_size=104)
    with pytest.raises(
        SpqError, match=r"groups of 16 do not divide the width 104 of '.*down_proj'"
    ):
        run(model)


def test_too_little_text_to_train_on_is_refused():
    model = tiny_model()
    with pytest.raises(SpqError, match="3 calibration windows are too few to train"):
        run(model, calibrated(model, count=3), reconstruction=SHORT)


def poison(monkeypatch, call: int) -> None:
    """Make the loss of that call a NaN; the first one is of held-out windows."""
    whole, calls = reconstruction.Target.loss, []

    def poisoned(self, output, windows):
        calls.append(len(windows))
        return whole(self, output, windows) * (float("nan") if len(calls) == call else 1)

    monkeypatch.setattr(reconstruction.Target, "loss", poisoned)


def test_a_loss_that_becomes_nan_ends_the_training_of_its_layer_and_no_more(monkeypatch, caplog):
    model = tiny_model()
    poison(monkeypatch, 7)
    view, _ = run(model, calibrated(model, count=8), reconstruction=SHORT)
    stopped = r"training (\S+) stopped at step [1-9]\d*, since its loss is nan"
    assert re.findall(stopped, caplog.text) == [view.layers[0].name]
    for layer in view.layers:
        for named in layer.linears:
            assert isinstance(format_of(named.module), GroupSparse)
            named.module.stored_weight.check()


def test_a_loss_that_is_nan_from_the_start_is_refused_and_the_layer_named(monkeypatch):
    model = tiny_model()
    poison(monkeypatch, 2)
    with pytest.raises(SpqError, match=r"model.layers.0: the loss is nan before anything"):
        run(model, calibrated(model, count=8), reconstruction=SHORT)


@pytest.mark.parametrize("name", ["gqsa", "sparse"])
def test_the_shipped_recipes_run_and_reload(tmp_path, text_file, name):
    fields = spqlm.recipe.load_recipe(name).to_dict()
    fields["calibration"] = {"source": str(text_file), "windows": 8, "context": 32}
    for stage in fields["stages"]:
        if "sparsify" in stage:
            stage["sparsify"]["reconstruction"]["steps"] = 4
        if "distill" in stage:
            stage["distill"] |= {"steps": 4, "context": 32, "held_out": 2, "check_every": 2}
    result = spqlm.compress(
        tiny_model(), tmp_path / "out", recipe=Recipe.from_dict(fields), tokenizer=tiny_tokenizer()
    )
    assert torch.equal(logits(spqlm.load(tmp_path / "out")), logits(result.model))


def test_a_weight_whose_numbers_are_too_far_apart_is_named(model, tokenizer, text_file):
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and "layers" in name:
            parameter.data *= torch.logspace(-12, 3, len(parameter))[:, None]
    recipe = Recipe.from_dict(
        {
            "calibration": {"source": str(text_file), "windows": 4, "context": 24},
            "stages": [{"sparsify": {"reconstruction": {"steps": 2}}}],
        }
    )
    with pytest.raises(SpqError, match=r"weight 'model.layers.*' cannot be rounded: .*scale"):
        spqlm.compress(model, recipe=recipe, tokenizer=tokenizer)
