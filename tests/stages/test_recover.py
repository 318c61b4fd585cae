import pytest
import torch
from tests.helpers import TEXT, tiny_model

from spqlm.cache import RunState, cache_directory
from spqlm.calibration.statistics import Statistics
from spqlm.changes import Plan
from spqlm.errors import SpqError
from spqlm.kernels import widening
from spqlm.model.memory import resident_bytes
from spqlm.model.view import ModelView
from spqlm.modules.linear import CompressedLinear
from spqlm.modules.lora import LoraLinear
from spqlm.modules.low_rank_linear import LowRankLinear
from spqlm.stages.base import Inputs
from spqlm.stages.quantize import Quantize
from spqlm.stages.recover import Recover
from spqlm.stages.svd import Svd
from spqlm.training import training_state

SVD, INT8 = Svd(variance=0.5, multiple_of=8), Quantize()
FORMS = {"dense": [], "int8": [INT8], "low_rank": [SVD], "low_rank_int8": [SVD, INT8]}
QUICK = {"steps": 4, "context": 16, "learning_rate": 1e-3}


@pytest.fixture(params=FORMS)
def compressed(request):
    model = tiny_model()
    for stage in FORMS[request.param]:
        stage.apply(ModelView(model), stage.plan(ModelView(model), Statistics()))
    return model


@pytest.fixture
def text(tokenizer):
    return Inputs(ids=torch.tensor(tokenizer(TEXT)["input_ids"]))


def run(stage, model, text):
    plan = stage.plan(ModelView(model), Statistics())
    stage.apply(ModelView(model), plan, text)
    return plan


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(first, second):
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


@torch.no_grad()
def loss(model, ids):
    window = ids[None, :96]
    return float(model(input_ids=window, labels=window).loss)


def test_the_loss_falls_on_a_text_that_repeats(compressed, text):
    before = loss(compressed, text.ids)
    run(Recover(steps=40, context=32, learning_rate=5e-3), compressed, text)
    assert loss(compressed, text.ids) < 0.75 * before


def test_the_same_seed_gives_the_same_weights(text):
    states = []
    for seed in (0, 0, 1):
        model = tiny_model()
        INT8.apply(ModelView(model), INT8.plan(ModelView(model), Statistics()))
        torch.manual_seed(seed + len(states))  # the global generator must not matter
        run(Recover(**QUICK), model, Inputs(ids=text.ids, seed=seed))
        states.append(state(model))
    assert equal(states[0], states[1])
    assert not equal(states[0], states[2])


def test_adapters_end_up_inside_the_weights(compressed, text):
    names = [name for name, _ in compressed.named_modules()]
    kinds = [type(module) for module in compressed.modules()]
    ranks = [m.rank for m in compressed.modules() if isinstance(m, LowRankLinear)]
    size, before = resident_bytes(compressed), state(compressed)
    run(Recover(**QUICK), compressed, text)
    assert not any(isinstance(module, LoraLinear) for module in compressed.modules())
    assert [name for name, _ in compressed.named_modules()] == names
    assert [type(module) for module in compressed.modules()] == kinds
    assert [m.rank for m in compressed.modules() if isinstance(m, LowRankLinear)] == ranks
    after = state(compressed)
    assert {name: t.dtype for name, t in after.items()} == {n: t.dtype for n, t in before.items()}
    assert resident_bytes(compressed) == size
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    leaf = {
        f"{leaf.name}.{'codes' if isinstance(leaf.module, CompressedLinear) else 'weight'}"
        for leaf in ModelView(compressed).leaves(("attention", "mlp"))
    }
    assert changed == leaf


def test_int8_codes_move_by_few_steps_and_keep_their_scales(model, text):
    INT8.apply(ModelView(model), INT8.plan(ModelView(model), Statistics()))
    before = state(model)
    run(Recover(steps=2, context=16, learning_rate=1e-4), model, text)
    after = state(model)
    for name in before:
        if name.endswith("scale"):
            assert torch.equal(before[name], after[name])
        elif name.endswith("codes"):
            assert (after[name].int() - before[name].int()).abs().max() <= 1


@pytest.mark.parametrize("schedule", ["linear", "constant", "cosine"])
@pytest.mark.parametrize("stop", [1, 3, 7])
@pytest.mark.parametrize("form", ["dense", "low_rank_int8"])
def test_a_killed_run_goes_on_after_its_last_step(text, monkeypatch, caplog, form, stop, schedule):
    stage, steps = Recover(**QUICK | {"steps": 8, "schedule": schedule}), []
    monkeypatch.setattr(training_state, "SHARE", float("inf"))
    inner = torch.optim.AdamW.step

    def made():
        model = tiny_model()
        for before in FORMS[form]:
            before.apply(ModelView(model), before.plan(ModelView(model), Statistics()))
        return model

    def step(self, *arguments):
        if len(steps) == stop:
            raise KeyboardInterrupt
        steps.append(inner(self, *arguments))

    def anew(self, *arguments):
        steps.append(inner(self, *arguments))

    expected = made()
    with caplog.at_level("INFO"):
        run(stage, expected, text)
        monkeypatch.setattr(torch.optim.AdamW, "step", step)
        with pytest.raises(KeyboardInterrupt):
            run(stage, made(), Inputs(ids=text.ids, run=RunState()))
        monkeypatch.setattr(torch.optim.AdamW, "step", anew)
        model = made()
        run(stage, model, Inputs(ids=text.ids, run=RunState()))
        assert len(steps) == 8
        assert equal(state(model), state(expected))
        again = made()
        run(stage, again, Inputs(ids=text.ids, run=RunState()))
    assert len(steps) == 8, "it was through"
    assert equal(state(again), state(expected))
    said = [record.args for record in caplog.records if record.msg.startswith("recovery: loss")]
    assert len(said) == 3 and len(set(said)) == 1


def test_a_damaged_state_is_logged_and_training_starts_anew(text, caplog):
    states = []
    for _ in range(2):
        model = tiny_model()
        run(Recover(**QUICK), model, Inputs(ids=text.ids, run=RunState()))
        states.append(state(model))
        [file] = cache_directory().glob("run-recover-*/training.safetensors")
        file.write_bytes(b"what is this")
    assert "training.safetensors is damaged, and its work is done anew" in caplog.text
    assert equal(*states)


def test_training_is_on_the_text_given(text):
    """Other text, other weights."""
    first, second = tiny_model(), tiny_model()
    run(Recover(**QUICK), first, text)
    run(Recover(**QUICK), second, Inputs(ids=text.ids.flip(0)))
    assert not equal(state(first), state(second))


def test_a_loss_that_diverges_is_an_error_and_leaves_the_model(compressed, text):
    before, modules = state(compressed), [type(m) for m in compressed.modules()]
    stage = Recover(steps=8, context=16, learning_rate=1e30, schedule="constant")
    with pytest.raises(SpqError, match=r"loss became (nan|inf) at step \d"):
        run(stage, compressed, text)
    assert equal(state(compressed), before)
    assert [type(m) for m in compressed.modules()] == modules


def test_an_interrupt_leaves_the_model(compressed, text, monkeypatch):
    before, modules = state(compressed), [type(m) for m in compressed.modules()]

    def interrupted(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.optim.AdamW, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(Recover(**QUICK), compressed, text)
    assert equal(state(compressed), before)
    assert [type(m) for m in compressed.modules()] == modules


@pytest.mark.parametrize("fails", [False, True], ids=["success", "failure"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_gradient_flags_and_mode_are_restored(model, text, training, fails):
    model.train(training)
    model.requires_grad_(True)
    model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    options = QUICK | ({"learning_rate": 1e30, "schedule": "constant"} if fails else {})
    if fails:
        with pytest.raises(SpqError):
            run(Recover(**options), model, text)
    else:
        run(Recover(**options), model, text)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert all(module.training == training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_plan_costs_nothing_and_survives_json(compressed):
    before = state(compressed)
    plan = Recover().plan(ModelView(compressed), Statistics())
    assert plan.changes == [] and plan.bytes_saved == 0
    assert "25600 tokens" in plan.summary
    assert Plan.model_validate_json(plan.model_dump_json()) == plan
    assert equal(state(compressed), before)


def test_text_shorter_than_one_sequence_is_an_error(model, text):
    with pytest.raises(SpqError, match="100 tokens, and at least 128"):
        run(Recover(), model, Inputs(ids=text.ids[:100]))


def test_no_text_is_an_error(model):
    with pytest.raises(SpqError, match="calibration text"):
        run(Recover(), model, Inputs())


def test_a_last_step_that_diverges_is_an_error(compressed, text):
    with pytest.raises(SpqError):
        run(Recover(steps=1, context=16, learning_rate=1e30), compressed, text)


@pytest.mark.parametrize("form", FORMS)
def test_processors_without_bfloat16_train_in_float32_and_give_back_bfloat16(
    monkeypatch, text, form
):
    found = {}
    for wide in (torch.bfloat16, torch.float32):
        monkeypatch.setattr(widening, "arithmetic", lambda asked, wide=wide: wide)
        model = tiny_model(dtype=torch.bfloat16)
        for stage in FORMS[form]:
            stage.apply(ModelView(model), stage.plan(ModelView(model), Statistics()))
        kinds = {name: tensor.dtype for name, tensor in model.state_dict().items()}
        before = loss(model, text.ids)
        run(Recover(**QUICK | {"steps": 30}), model, text)
        assert {name: tensor.dtype for name, tensor in model.state_dict().items()} == kinds
        found[wide] = loss(model, text.ids) - before
    assert found[torch.float32] < 0
    assert found[torch.float32] == pytest.approx(found[torch.bfloat16], rel=0.3)
