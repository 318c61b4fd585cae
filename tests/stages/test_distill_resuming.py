"""Distillation that was killed goes on."""

import pytest
import torch
from tests.stages.distilling import SHORT, compressed, counted_steps, ids

from spqlm.cache import RunState, cache_directory
from spqlm.changes import Plan
from spqlm.stages import distill
from spqlm.stages.base import Inputs
from spqlm.stages.distill import Distill
from spqlm.training import training_state


def resumed(monkeypatch, stage, stop):
    """Kill training in the step after `stop`, run again; the model, and the steps of the second."""
    dense, view = compressed()

    def inputs():
        return Inputs(ids=ids(), dense=dense, run=RunState())

    with monkeypatch.context() as patch:
        counted_steps(patch, stop)
        with pytest.raises(KeyboardInterrupt):
            stage.apply(view, Plan(stage="distill"), inputs())
    done = counted_steps(monkeypatch)
    _, view = compressed()
    stage.apply(view, Plan(stage="distill"), inputs())
    return view.model, done


# At this rate the best state is not always the last one.
ROUGH = {"learning_rate": 2e-2, "code_rate": 5e-2}


@pytest.mark.parametrize("stop", [1, 2, 5, 7])
@pytest.mark.parametrize("objective", ["dense_model", "next_token"])
@pytest.mark.parametrize("parameters", ["all", "codes"])
def test_a_killed_run_goes_on_after_its_last_check(monkeypatch, objective, parameters, stop):
    monkeypatch.setattr(training_state, "SHARE", float("inf"))
    stage = Distill(**SHORT, **ROUGH, objective=objective, parameters=parameters)
    dense, view = compressed()
    stage.apply(view, Plan(stage="distill"), Inputs(ids=ids(), dense=dense))
    model, done = resumed(monkeypatch, stage, stop)
    assert len(done) == 8 - stop // 2 * 2
    state = view.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("parameters", ["all", "codes"])
def test_a_run_that_was_through_is_not_trained_again(monkeypatch, parameters):
    stage = Distill(**SHORT, **ROUGH, parameters=parameters)
    models = []
    for _ in range(2):
        dense, view = compressed()
        stage.apply(view, Plan(stage="distill"), Inputs(ids=ids(), dense=dense, run=RunState()))
        monkeypatch.setattr(distill, "_loss", None)
        models.append(view.model.state_dict())
    assert all(torch.equal(value, models[0][name]) for name, value in models[1].items())


def test_another_dense_model_is_another_run():
    stage = Distill(**SHORT, **ROUGH)
    run = RunState()
    for scale in (1.0, 1.1):
        dense, view = compressed()
        with torch.no_grad():
            dense.model.norm.weight.mul_(scale)
        stage.apply(view, Plan(stage="distill"), Inputs(ids=ids(), dense=dense, run=run))
    assert len(list(cache_directory().glob("run-distill-*"))) == 2


def test_a_damaged_state_is_logged_and_training_starts_anew(monkeypatch, caplog):
    monkeypatch.setattr(training_state, "SHARE", float("inf"))
    stage, models = Distill(**SHORT), []
    for _ in range(2):
        dense, view = compressed()
        stage.apply(view, Plan(stage="distill"), Inputs(ids=ids(), dense=dense, run=RunState()))
        models.append(view.model.state_dict())
        [file] = cache_directory().glob("run-distill-*/training.safetensors")
        file.write_bytes(file.read_bytes()[:-8])
    assert "training.safetensors is damaged, and its work is done anew" in caplog.text
    assert all(torch.equal(value, models[0][name]) for name, value in models[1].items())
