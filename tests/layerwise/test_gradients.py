import errno

import pytest
import torch
from tests.calibration.test_sensitivity import names_of, random_windows
from tests.helpers import tiny_model

import spqlm.layerwise.gradients
from spqlm.calibration.sensitivity import collect_sensitivities
from spqlm.errors import SpqError
from spqlm.layerwise.gradients import LayerByLayer
from spqlm.layerwise.walk import Walk
from spqlm.model.view import ModelView


def collected(view, windows, *passes):
    names = [*names_of(view.model), view.embedding.name]
    return collect_sensitivities(view, windows, names, *passes)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, item in expected.items():
        for key, value in vars(item).items():
            other = getattr(found[name], key)
            assert value is other is None or torch.equal(other, value), (name, key)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model_type", ["llama", "opt", "gemma3_text", "qwen3"])
def test_gradients_layer_by_layer_are_those_of_the_whole_model(model_type, dtype, tmp_path):
    view, windows = ModelView(tiny_model(model_type).to(dtype)), random_windows(5)
    assert_same(
        collected(view, windows, LayerByLayer(tmp_path / "states")), collected(view, windows)
    )
    assert list(tmp_path.iterdir()) == []
    assert all("forward" not in module.__dict__ for module in view.model.modules())
    assert all(parameter.grad is None for parameter in view.model.parameters())


def test_a_pass_that_was_stopped_goes_on_after_the_last_layer(tmp_path, monkeypatch):
    view, windows = ModelView(tiny_model()), random_windows(2)
    expected, write, run = collected(view, windows), spqlm.layerwise.gradients.write_tensors, []
    original = Walk.run
    monkeypatch.setattr(Walk, "run", lambda *a: run.append(a[1].name) or original(*a))
    collected(view, windows, LayerByLayer(tmp_path / "undisturbed"))
    undisturbed, stops = len(run), 0
    run.clear()

    def stopping(*arguments):
        write(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(spqlm.layerwise.gradients, "write_tensors", stopping)
    while True:
        try:  # each gets one file further
            found = collected(view, windows, LayerByLayer(tmp_path / "states"))
            break
        except KeyboardInterrupt:
            stops += 1
    assert_same(found, expected)
    assert stops > 2 * len(view.layers)
    assert len(run) <= undisturbed  # no layer ran twice


def test_a_damaged_file_is_computed_anew(tmp_path, caplog):
    view, windows = ModelView(tiny_model()), random_windows(2)
    states = tmp_path / "states"
    states.mkdir()
    for name in ("backward", view.layers[1].name):
        (states / f"{name}.safetensors").write_bytes(b"damaged")
    with pytest.raises(SpqError, match=r"cannot be read from .* run the same command again"):
        collected(view, windows, LayerByLayer(states))
    assert_same(collected(view, windows, LayerByLayer(states)), collected(view, windows))
    assert "is damaged, and its work is done anew" in caplog.text


def test_a_full_disk_is_said_and_what_is_finished_stays(tmp_path, monkeypatch):
    view, windows = ModelView(tiny_model()), random_windows(2)
    write = spqlm.layerwise.gradients.write_tensors

    def full(file, *arguments):
        if file.stem == "head":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(file, *arguments)

    monkeypatch.setattr(spqlm.layerwise.gradients, "write_tensors", full)
    with pytest.raises(SpqError, match=r"hidden states cannot be written .*No space left.*goes on"):
        collected(view, windows, LayerByLayer(tmp_path / "states"))
    assert len(list((tmp_path / "states").iterdir())) == len(view.layers)
    monkeypatch.setattr(spqlm.layerwise.gradients, "write_tensors", write)
    assert_same(
        collected(view, windows, LayerByLayer(tmp_path / "states")), collected(view, windows)
    )
