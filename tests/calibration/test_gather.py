import pytest
import torch
from tests.helpers import TEXT, tiny_tokenizer

from spqlm.calibration import gather
from spqlm.calibration.gather import Calibration, CalibrationConfig
from spqlm.calibration.needs import Needs
from spqlm.calibration.statistics import Observation, draw_windows
from spqlm.errors import SpqError
from spqlm.model.view import ModelView

NAME = "model.layers.0.mlp.up_proj"


@pytest.fixture
def config(text_file):
    return CalibrationConfig(source=str(text_file), windows=2, context=32)


def test_nothing_is_read_before_it_is_needed(model, config):
    calibration = Calibration(config, ModelView(model), None, seed=0)
    found = calibration.statistics(Needs(text=True, dense=True))
    assert not found.moments and not found.sensitivities and not found.windows.numel()
    assert calibration.record is None
    with pytest.raises(SpqError, match="no tokenizer"):
        calibration.statistics(Needs(windows=True))


def test_the_text_is_read_once_and_recorded(model, tokenizer, config, monkeypatch):
    reads, load_text = [], gather.load_text
    monkeypatch.setattr(gather, "load_text", lambda *a: reads.append(a) or load_text(*a))
    calibration = Calibration(config, ModelView(model), tokenizer, seed=0)
    assert calibration.ids is calibration.ids
    calibration.statistics(Needs(windows=True))
    assert reads == [(config.source, "calibration")]
    assert (calibration.record.tokens, calibration.record.windows) == (len(TEXT), 2)


def test_only_what_is_needed_is_gathered(model, tokenizer, config):
    calibration = Calibration(config, ModelView(model), tokenizer, seed=3)
    drawn = draw_windows(model, calibration.ids, 32, 2, seed=3)
    observation = Observation(NAME, "output")
    found = [
        calibration.statistics(needs)
        for needs in (
            Needs(windows=True),
            Needs(observations=frozenset({observation})),
            Needs(sensitivities=frozenset({NAME})),
        )
    ]
    assert all(torch.equal(statistics.windows, drawn) for statistics in found)
    assert [set(statistics.moments) for statistics in found] == [set(), {observation}, set()]
    assert [set(statistics.sensitivities) for statistics in found] == [set(), set(), {NAME}]


@pytest.mark.parametrize("source", ["text", "builtin", "model"])
def test_windows_begin_as_the_tokenizer_begins_a_text(model, text_file, source):
    config = CalibrationConfig(
        source=str(text_file) if source == "text" else source, windows=6, context=32
    )
    calibration = Calibration(config, ModelView(model), tiny_tokenizer("<s>"), seed=0)
    windows = calibration.statistics(Needs(windows=True)).windows
    assert windows.shape == (6, 32) and (windows[:, 0] == 0).all()
    assert calibration.record.begins == [0]
    trained = draw_windows(model, calibration.ids, 16, 4, seed=1)  # as stages that train do
    assert trained.shape == (4, 16) and (trained[:, 0] == 0).all()
