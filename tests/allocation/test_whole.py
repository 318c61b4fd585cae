import copy
import math

import pytest
import torch
from tests.helpers import calibrated, tiny_model
from tests.stages.budgets import HUGE, INT4, budget, throughout

from spqlm.allocation.whole import PROBED_WINDOWS, Whole, correction
from spqlm.cache import cache_directory
from spqlm.changes import Change, Plan
from spqlm.model.view import ModelView
from spqlm.stages.base import Inputs

WINDOWS = torch.randint(3, 256, (4, 24), generator=torch.Generator().manual_seed(0))


class Noted(list):
    def add_measured(self, predicted: float, loss: float) -> None:
        self.append((predicted, loss))


def plan_of(loss: float) -> Plan:
    change = Change(module="w", bytes_before=2, bytes_after=1, predicted_loss=loss)
    return Plan(stage="budget", changes=[change], correction=2.0)


@pytest.mark.parametrize("model_type", ["llama", "opt", "gemma3_text"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_the_loss_is_the_divergence_of_all_logits(model_type, tied):
    dense = tiny_model(model_type, tie_word_embeddings=tied)
    view, noted = ModelView(copy.deepcopy(dense)), Noted()
    whole = Whole(view, WINDOWS, noted)
    stage = budget(**throughout(INT4), rounding="nearest")
    stage.apply(view, stage.plan(view, None))
    found = whole.measure(view, plan_of(0.5))
    with torch.no_grad():
        p, q = (m(WINDOWS).logits.double().log_softmax(-1) for m in (dense, view.model))
    expected = float((p.exp() * (p - q)).sum(-1).mean())
    assert found == pytest.approx(expected, rel=1e-3)
    # It is the sum of prices that was measured, without the correction of it.
    assert noted == [(0.5, found)]


def test_predictions_are_corrected_by_what_was_measured():
    assert correction(0.3, []) == 1.0
    assert correction(0.3, [(0.1, 0.2)]) == pytest.approx(2.0)
    seen = [(1.0, 1.5), (0.1, 0.08)]
    assert correction(0.1, seen) == pytest.approx(0.8)
    assert correction(1.0, seen) == pytest.approx(1.5)
    assert correction(0.01, seen) == pytest.approx(0.8)
    assert correction(7.0, seen) == pytest.approx(1.5)
    assert correction(math.sqrt(0.1), seen) == pytest.approx(math.sqrt(0.8 * 1.5))
    # A model that gained, or lost nothing, says nothing of the ratio.
    assert correction(0.3, [(0.0, 0.1), (0.2, -0.1)]) == 1.0


def run(text: torch.Tensor, **fields) -> Plan:
    model = tiny_model()
    statistics, view = calibrated(model, 16), ModelView(model)
    stage = budget(**throughout(INT4), target_bytes=HUGE, **fields)
    plan = stage.plan(view, statistics)
    stage.apply(view, plan, Inputs(statistics, text))
    return plan


def test_a_run_measures_and_the_next_one_predicts_that():
    text = torch.randint(3, 256, (4000,), generator=torch.Generator().manual_seed(1))
    first, second = run(text), run(text)
    assert first.correction == 1.0
    assert second.priced_loss == pytest.approx(first.priced_loss)
    assert second.correction != 1.0 and f"{second.predicted_loss:.4f} nats" in second.summary
    # The same windows as the run itself drew.
    third = run(text)
    assert third.correction == pytest.approx(second.correction)
    assert PROBED_WINDOWS > 1


@pytest.mark.parametrize("how", ["no text", "trained"])
def test_what_is_not_as_it_was_priced_is_not_measured(how):
    text = torch.randint(3, 256, (4000,), generator=torch.Generator().manual_seed(1))
    fields = {"reconstruction": {"steps": 1, "check_every": 1}} if how == "trained" else {}
    for _ in range(2):
        assert run(None if how == "no text" else text, **fields).correction == 1.0


def test_a_damaged_file_is_logged_and_done_without(caplog):
    text = torch.randint(3, 256, (4000,), generator=torch.Generator().manual_seed(1))
    run(text)
    [file] = cache_directory().glob("prices-*/measured.safetensors")
    file.write_bytes(file.read_bytes()[:-8])
    assert run(text).correction == 1.0
    assert "damaged cache file measured" in caplog.text
