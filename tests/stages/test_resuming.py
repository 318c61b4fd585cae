"""Every long stage that is killed and run again ends with the bytes of an undisturbed run."""

import copy

import pytest
import torch
from tests.helpers import calibrated, tiny_model, tiny_tokenizer
from tests.stages.distilling import counted_steps

import spqlm
from spqlm.cache import RunState, cache_directory
from spqlm.calibration.statistics import Statistics
from spqlm.layerwise.finished_layers import FinishedLayers
from spqlm.layerwise.loop import Step
from spqlm.model.view import ModelView
from spqlm.modules.linear import Compressed
from spqlm.modules.low_rank_linear import LowRankLinear
from spqlm.recipe import Recipe
from spqlm.stages import distill
from spqlm.stages.base import Inputs
from spqlm.stages.budget import Budget
from spqlm.stages.factorize import Factorize
from spqlm.stages.mask import Mask
from spqlm.stages.sparsify import Sparsify
from spqlm.stages.svd import Svd
from spqlm.training import training_state
from spqlm.training.reconstruction import Reconstruction

TRAINED = Reconstruction(steps=4, batch_size=2, check_every=2, learning_rate=0.1)
LAYERS = 3
FOUR = {"bits": (4,), "embedding_bits": (4,), "group_sizes": (32,)}
# Cuts, ranks and dropped groups at once.
SHAPED = {
    "group_sizes": (32,),
    "target_bytes": 230_000,
    "widths": (0.5,),
    "key_value_groups": (0.5,),
    "ranks": (0.5,),
    "sparsities": (0.5,),
    "multiple_of": 8,
}
STAGES = {
    "sparsify": Sparsify(rounds=1, reconstruction=TRAINED),
    "budget": Budget(**FOUR),
    "budget, asymmetric": Budget(**FOUR, asymmetric=0.5),
    "budget, trained": Budget(**FOUR, reconstruction=TRAINED),
    "mask": Mask(modules=("mlp",)),
    "factorize": Factorize(),
}
# Where a run is killed: in its n-th pass through a layer, or before or after it keeps the n-th.
KILLS = [("observe", 1), ("before", 2), ("after", 2), ("after", 3)]


def made(model_type: str = "llama", **overrides):
    return tiny_model(model_type, num_hidden_layers=LAYERS, **overrides)


def wide_model(model_type: str):
    """Wide enough for ranks, with heads to spare."""
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4}
    return made(model_type, hidden_size=128, head_dim=16, **heads)


def assert_same(model, expected) -> None:
    kinds = [(name, type(module)) for name, module in expected.named_modules()]
    assert [(name, type(module)) for name, module in model.named_modules()] == kinds
    state, wanted = model.state_dict(), expected.state_dict()
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[name], wanted[name]) for name in wanted)
    trains = {name: parameter.requires_grad for name, parameter in expected.named_parameters()}
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == trains
    assert ModelView(model).tied == ModelView(expected).tied
    ids = torch.arange(5, 29)[None]
    with torch.inference_mode():
        assert torch.equal(model(input_ids=ids).logits, expected(input_ids=ids).logits)


def run(stage, model, statistics, state: RunState | None = None):
    view = ModelView(model)
    plan = stage.plan(view, statistics)
    stage.apply(view, plan, Inputs(statistics, run=state))
    return model


class Kills:
    """Interrupts a run at the n-th of something, and counts passes through layers."""

    def __init__(self, patch, where: str = "", count: int = 0) -> None:
        self.observed: list[str] = []
        self.kept: list[str] = []
        observe, keep = Step.observe, FinishedLayers.keep

        def at(place, seen):
            if where == place and len(seen) == count:
                raise KeyboardInterrupt

        def observing(step, *observers, **options):
            if not step._frozen:
                self.observed.append(step.layer.name)
                at("observe", self.observed)
            observe(step, *observers, **options)

        def keeping(finished, name, changed):
            self.kept.append(name)
            at("before", self.kept)
            keep(finished, name, changed)
            at("after", self.kept)

        patch.setattr(Step, "observe", observing)
        patch.setattr(FinishedLayers, "keep", keeping)


def killed(monkeypatch, stage, model, statistics, where, count) -> int:
    """Run until the interrupt; how many layers were finished."""
    with monkeypatch.context() as patch:
        kills = Kills(patch, where, count)
        with pytest.raises(KeyboardInterrupt):
            run(stage, copy.deepcopy(model), statistics, RunState())
    return len(kills.kept) - (where == "before")


@pytest.mark.parametrize(("where", "count"), KILLS)
@pytest.mark.parametrize("name", STAGES)
def test_a_stage_goes_on_after_its_last_finished_layer(monkeypatch, name, where, count):
    stage, model = STAGES[name], made()
    statistics = calibrated(model)
    expected = run(stage, copy.deepcopy(model), statistics)
    done = killed(monkeypatch, stage, model, statistics, where, count)
    kills = Kills(monkeypatch)
    state = RunState()
    found = run(stage, copy.deepcopy(model), statistics, state)
    layers = [layer.name for layer in ModelView(model).layers]
    assert kills.observed == layers[done:]
    assert_same(found, expected)
    # Now all are finished.
    kills.observed.clear(), kills.kept.clear()
    assert_same(run(stage, copy.deepcopy(model), statistics, state), expected)
    assert not kills.observed and not kills.kept
    state.forget()
    assert not list(cache_directory().glob("run-*"))


@pytest.mark.parametrize("stage", [Svd(variance=0.5, multiple_of=1), Factorize(whiten=False)])
@pytest.mark.parametrize(("where", "count"), [("before", 2), ("after", 2)])
def test_weights_that_are_factorised_alone_are_not_factorised_again(
    monkeypatch, stage, where, count
):
    model, none = made("qwen2"), Statistics()
    expected = run(stage, copy.deepcopy(model), none)
    changed = [change.module for change in stage.plan(ModelView(model), none).changes]
    assert len(changed) > 3
    done = killed(monkeypatch, stage, model, none, where, count)
    kills, state = Kills(monkeypatch), RunState()
    assert_same(run(stage, copy.deepcopy(model), none, state), expected)
    assert kills.kept == changed[done:]
    state.forget()
    assert not list(cache_directory().glob("run-*"))


@pytest.mark.parametrize("model_type", ["llama", "opt", "gemma3_text"])
def test_cuts_and_ranks_go_on(monkeypatch, model_type):
    stage, model = Budget(**SHAPED, reconstruction=TRAINED), wide_model(model_type)
    statistics = calibrated(model)
    expected = run(stage, copy.deepcopy(model), statistics)
    layers, modules = ModelView(expected).layers, list(expected.modules())
    if model_type == "gemma3_text":
        pairs = [module for module in modules if isinstance(module, LowRankLinear)]
        assert any(isinstance(pair.left, Compressed) for pair in pairs)
    else:
        assert any(layer.query_heads < 8 for layer in layers)
        assert any(layer.intermediate_size < 128 for layer in layers)
    killed(monkeypatch, stage, model, statistics, "after", 2)
    kills = Kills(monkeypatch)
    assert_same(run(stage, model, statistics, RunState()), expected)
    assert len(kills.observed) == 1


@pytest.mark.parametrize(
    ("tied", "where", "extra"),
    [(True, "before", 1), (True, "after", 1), (False, "after", 1), (False, "after", 2)],
)
def test_the_budget_goes_on_between_embedding_and_head(monkeypatch, tied, where, extra):
    stage, model = Budget(**FOUR), made(tie_word_embeddings=tied)
    statistics = calibrated(model)
    expected = run(stage, copy.deepcopy(model), statistics)
    killed(monkeypatch, stage, model, statistics, where, LAYERS + extra)
    kills = Kills(monkeypatch)
    found = run(stage, copy.deepcopy(model), statistics, RunState())
    outer = ["model.embed_tokens", "lm_head"][: 1 if tied else 2]
    assert kills.kept == outer[extra - (where == "before") :]
    assert not kills.observed
    assert_same(found, expected)


def _cut(file):
    file.write_bytes(file.read_bytes()[:100])


def _other_tensors(file):
    # What another layer has, under this one's name.
    file.write_bytes(file.with_name("lm_head.safetensors").read_bytes()[:-1])


@pytest.mark.parametrize("damage", [_cut, _other_tensors])
def test_a_damaged_layer_is_compressed_anew_and_the_others_are_not(monkeypatch, caplog, damage):
    stage, model = STAGES["budget, trained"], made(tie_word_embeddings=False)
    statistics = calibrated(model)
    expected = run(stage, copy.deepcopy(model), statistics, RunState())
    [file] = cache_directory().glob("run-budget-*/model.layers.1.safetensors")
    damage(file)
    kills = Kills(monkeypatch)
    assert_same(run(stage, copy.deepcopy(model), statistics, RunState()), expected)
    assert "model.layers.1.safetensors is damaged, and its work is done anew" in caplog.text
    assert kills.observed == ["model.layers.1"]


def test_a_directory_that_cannot_be_written_is_done_without(monkeypatch, caplog, tmp_path):
    stage, model = STAGES["mask"], made()
    statistics = calibrated(model)
    expected = run(stage, copy.deepcopy(model), statistics)
    (tmp_path / "file").write_text("not a directory")
    monkeypatch.setenv("SPQ_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert_same(run(stage, model, statistics, RunState()), expected)
    assert "model.layers.2.safetensors was not kept for a later run" in caplog.text


@pytest.mark.parametrize("changed", ["weights", "text", "settings", "seed"])
def test_other_work_does_not_go_on_from_it(monkeypatch, changed):
    stage, model = Mask(), made()
    statistics, seed = calibrated(model), 0
    run(stage, copy.deepcopy(model), statistics, RunState())
    if changed == "weights":
        model.model.norm.weight.data[0] += 1
    if changed == "text":
        statistics.windows = statistics.windows.flip(0)
    if changed == "settings":
        stage = Mask(sparsity=0.4)
    if changed == "seed":
        seed = 1
    kills, view = Kills(monkeypatch), ModelView(model)
    inputs = Inputs(statistics, seed=seed, run=RunState())
    stage.apply(view, stage.plan(view, statistics), inputs)
    assert len(kills.observed) == LAYERS


def test_codes_that_were_there_before_and_are_trained_are_kept():
    # The attention is in 4 bits already, and reconstruction trains it along with the new MLP.
    model = made()
    statistics = calibrated(model, count=16)
    run(Budget(bits=(4,), embedding_bits=(16,), group_sizes=(32,)), model, statistics)
    dense = made()
    for layer in ModelView(model).layers:
        for named in (*layer.mlp_inputs, layer.mlp_output):
            ModelView(model).replace(named.name, ModelView(dense).module(named.name))
    statistics = calibrated(model, count=16)
    longer = TRAINED.model_copy(update={"steps": 12, "check_every": 4})
    stage, results = Sparsify(rounds=1, reconstruction=longer, modules=("mlp",)), []
    for _ in range(2):
        results.append(run(stage, copy.deepcopy(model), statistics, RunState()))
    before, after = model.state_dict(), results[0].state_dict()
    codes = [name for name in before if "self_attn" in name and name.endswith("codes")]
    assert not all(torch.equal(before[name], after[name]) for name in codes)
    assert_same(results[1], results[0])


# --- a whole run ---------------------------------------------------------------------------------

BUDGET = FOUR | {"reconstruction": TRAINED.model_dump()}
DISTILL = {"steps": 6, "batch_size": 2, "context": 24, "held_out": 2, "check_every": 2}


def compress(text_file, out=None):
    stages = [{"budget": BUDGET}, {"distill": DISTILL | {"parameters": "codes"}}]
    calibration = {"source": str(text_file), "windows": 8, "context": 32}
    recipe = Recipe.from_dict({"calibration": calibration, "stages": stages})
    return spqlm.compress(made(), out, recipe=recipe, tokenizer=tiny_tokenizer())


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_a_run_that_is_killed_inside_distill_does_not_redo_the_budget(
    monkeypatch, text_file, tmp_path, steps
):
    expected = compress(text_file)
    assert not list(cache_directory().glob("run-*")), "a run without an output is through, too"
    monkeypatch.setattr(training_state, "SHARE", float("inf"))
    with monkeypatch.context() as patch:
        counted_steps(patch, steps)
        with pytest.raises(KeyboardInterrupt):
            compress(text_file, tmp_path / "out")
    assert not (tmp_path / "out").exists()

    done = counted_steps(monkeypatch)
    kills = Kills(monkeypatch)
    found = compress(text_file, tmp_path / "out")
    assert not kills.observed and not kills.kept
    assert len(done) == 6 - steps // 2 * 2
    assert_same(found.model, expected.model)
    assert found.directory == tmp_path / "out"
    assert not list(cache_directory().glob("run-*"))


def test_a_run_that_is_killed_before_it_is_published_does_nothing_anew(
    monkeypatch, text_file, tmp_path
):
    expected = compress(text_file)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(spqlm.targets.base, "atomic_directory", interrupted)
        with pytest.raises(KeyboardInterrupt):
            compress(text_file, tmp_path / "out")
    kills = Kills(monkeypatch)
    monkeypatch.setattr(distill.Masters, "step", interrupted)
    assert_same(compress(text_file, tmp_path / "out").model, expected.model)
    assert not kills.observed
