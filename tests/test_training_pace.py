"""How fast a model in codes is trained."""

import itertools

import pytest
import torch

from spqlm.model.view import ModelView
from spqlm.training_pace import TrainingPace
from tests.helpers import tiny_model

WINDOWS = torch.arange(3, 19)[None]


def paced(*seconds: float, model_type: str = "llama", **options) -> TrainingPace:
    """Of two layers, where work that is timed is done, and takes these seconds in turn."""
    clock = itertools.cycle(seconds)

    def timed(work):
        work()
        return next(clock)

    model = tiny_model(model_type, num_hidden_layers=2, **options)
    return TrainingPace(ModelView(model), WINDOWS, timed)


def test_a_pass_is_split_into_its_layers_and_the_head():
    for found in (paced(5.0, 1.0).scales, paced(5.0, 1.0).adapters):
        assert found.head == pytest.approx(1 / 16)
        assert found.layer == pytest.approx(4 / 16 / 2)


def test_a_step_is_what_a_second_window_does_not_add():
    token, step = paced(5.0, 8.0).codes
    assert token == pytest.approx(3 / 16 / 2)
    assert step == pytest.approx(2 / 2)


def test_comparing_is_counted_by_token():
    assert paced(8.0).compared == pytest.approx(0.5)


@pytest.mark.parametrize("model_type", ["llama", "qwen3_moe", "opt", "gemma3_text"])
def test_training_can_be_timed_and_leaves_the_sample_alone(model_type):
    pace = paced(1.0, model_type=model_type)
    before = {name: p.clone() for name, p in pace._sample.model.named_parameters()}
    assert pace.scales and pace.adapters and pace.codes and pace.compared
    after = dict(pace._sample.model.named_parameters())
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(p.grad is None for p in after.values())
