"""Distillation that diverges stops, and keeps what was best."""

import copy
import re

import pytest
import torch
from tests.stages.distilling import compressed, tune

from spqlm.errors import SpqError
from spqlm.model.view import ModelView
from spqlm.stages import distill

STOPPED = r"distill stopped at step [1-9]\d*, since its \w+ is (nan|inf)"


def test_training_that_diverges_stops_says_where_and_keeps_what_was_best(caplog):
    dense, view = compressed()
    before = copy.deepcopy(view.model.state_dict())
    with caplog.at_level("WARNING"):
        tune(view, dense, parameters="codes", learning_rate=1e30, code_rate=1e30)
    assert re.search(STOPPED, caplog.text)
    assert all(torch.equal(value, before[name]) for name, value in view.model.state_dict().items())


def test_a_loss_that_stops_being_finite_ends_training_as_well(caplog, monkeypatch):
    dense, view = compressed()
    before = copy.deepcopy(view.model.state_dict())
    inner, losses = distill._loss, []

    def loss(*arguments):
        found, logits, gradient = inner(*arguments)
        losses.append(torch.is_grad_enabled())
        # Held-out text is looked at without gradients.
        late = sum(losses) > 2
        return (found * torch.inf if late and losses[-1] else found), logits, gradient

    monkeypatch.setattr(distill, "_loss", loss)
    with caplog.at_level("WARNING"):
        tune(view, dense, parameters="all", learning_rate=1e30)
    assert re.search(STOPPED, caplog.text)
    assert all(torch.equal(value, before[name]) for name, value in view.model.state_dict().items())


def test_a_loss_that_is_not_finite_stops_the_run():
    dense, view = compressed()
    with torch.no_grad():
        ModelView(dense).layers[0].query.module.weight[0, 0] = torch.nan
    with pytest.raises(SpqError, match="loss is nan before anything was trained"):
        tune(view, dense)
