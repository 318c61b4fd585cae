import copy
import logging
import os

import pytest
import torch
from safetensors.torch import save_file
from tests.helpers import tiny_model

from spqlm import kept_files
from spqlm.cache import KEPT_FILES, cache_directory
from spqlm.calibration import statistics_cache
from spqlm.calibration.sensitivity import collect_sensitivities
from spqlm.calibration.statistics import Observation, collect
from spqlm.calibration.statistics_cache import cached_moments, cached_sensitivities
from spqlm.model.view import ModelView

NAMES = (
    "model.layers.0.self_attn.q_proj",
    "model.layers.1.mlp.down_proj",
    "model.embed_tokens",
    "lm_head",
)


@pytest.fixture
def collected(monkeypatch):
    """The names of every collection that is really made."""
    calls = []

    def collect(view, windows, names, **options):
        calls.append(sorted(names))
        return collect_sensitivities(view, windows, names, **options)

    monkeypatch.setattr(statistics_cache, "collect_sensitivities", collect)
    return calls


def windows(seed=0, count=2):
    return torch.randint(3, 256, (count, 16), generator=torch.Generator().manual_seed(seed))


def run(model=None, text=None, names=NAMES):
    text = windows() if text is None else text
    return cached_sensitivities(ModelView(model or tiny_model()), text, names)


def files():
    return sorted(cache_directory().glob("*"))


def assert_equal(found, expected):
    assert set(found) == set(expected)
    for name, item in expected.items():
        other = found[name]
        assert torch.equal(other.norms, item.norms)
        assert torch.equal(other.output, item.output)
        assert other.norms.dtype == other.output.dtype == torch.float32
        assert (other.inputs is None) == (item.inputs is None)
        if item.inputs is not None:
            assert torch.equal(other.inputs, item.inputs)
            assert other.inputs.dtype == item.inputs.dtype


def test_a_second_run_reads_what_the_first_collected(collected):
    first = run()
    second = run(names=reversed(NAMES))
    assert collected == [sorted(NAMES)]
    assert_equal(second, first)
    assert_equal(second, collect_sensitivities(ModelView(tiny_model()), windows(), NAMES))
    assert len(files()) == 1  # and no partial file


def other_weights():
    model = tiny_model()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] += 1e-3
    return model


@pytest.mark.parametrize(
    "changed",
    [
        {"text": windows(seed=1)},
        {"text": windows(count=1)},
        {"text": windows().reshape(4, 8)},
        {"names": NAMES[:2]},
        {"model": other_weights()},
        {"model": tiny_model().bfloat16()},
        {"model": tiny_model(tie_word_embeddings=True)},
        {"model": tiny_model(hidden_act="gelu")},
    ],
    ids=["windows", "fewer", "shape", "names", "weight", "dtype", "tied", "config"],
)
def test_anything_else_is_collected_anew(collected, changed):
    run(tiny_model())
    found = run(**changed)
    assert len(collected) == 2
    view = ModelView(changed.get("model", tiny_model()))
    text, names = changed.get("text", windows()), changed.get("names", NAMES)
    assert_equal(found, collect_sensitivities(view, text, names))


def test_moments_are_not_gathered_again(monkeypatch):
    names = ("model.layers.0.mlp.gate_proj", "model.layers.1.self_attn.o_proj")
    wanted = {Observation(name, side) for name in names for side in ("input", "output")}
    view = ModelView(tiny_model())
    expected = collect(view.model, windows(), wanted).moments
    assert_same_moments(cached_moments(view, windows(), wanted), expected)
    with monkeypatch.context() as patch:
        patch.setattr(statistics_cache, "collect", None)
        assert_same_moments(cached_moments(view, windows(), wanted), expected)
        assert cached_moments(view, windows(), set()) == {}
    fewer = set(list(wanted)[:1])
    other = collect(view.model, windows(seed=1), fewer).moments
    assert_same_moments(cached_moments(view, windows(seed=1), fewer), other)


def assert_same_moments(found, expected):
    assert found.keys() == expected.keys()
    for place, moments in expected.items():
        assert torch.equal(found[place].mean_absolute, moments.mean_absolute)
        assert torch.equal(found[place].mean_square, moments.mean_square)


@pytest.mark.parametrize("damage", ["truncated", "nonsense", "empty"])
def test_a_damaged_file_is_ignored_and_rewritten(collected, caplog, damage):
    first = run()
    [file] = files()
    whole = file.read_bytes()
    damaged = {"truncated": whole[: len(whole) // 2], "nonsense": b"nonsense" * 99, "empty": b""}
    file.write_bytes(damaged[damage])
    with caplog.at_level(logging.WARNING, logger="spqlm"):
        assert_equal(run(), first)
    assert f"{file.name} is damaged, and its work is done anew" in caplog.text
    assert len(collected) == 2
    assert_equal(run(), first)
    assert len(collected) == 2


def test_a_file_of_an_earlier_computation_is_ignored(collected, caplog):
    first = run()
    [file] = files()
    # What tensors were called when whole matrices were kept.
    save_file({f"{name}/hessian": torch.eye(3) for name in NAMES}, file)
    with caplog.at_level(logging.WARNING, logger="spqlm"):
        assert_equal(run(), first)
    assert f"{file.name} is damaged, and its work is done anew" in caplog.text
    assert len(collected) == 2


def test_a_directory_that_cannot_be_written_is_done_without(
    collected, caplog, monkeypatch, tmp_path
):
    (tmp_path / "file").write_text("not a directory")
    monkeypatch.setenv("SPQ_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with caplog.at_level(logging.WARNING, logger="spqlm"):
        found = run()
    assert "was not kept for a later run" in caplog.text
    assert set(found) == set(NAMES)
    run()
    assert len(collected) == 2


def test_a_write_that_fails_leaves_no_partial_file(monkeypatch):
    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(kept_files, "save_file", fail)
    assert set(run()) == set(NAMES)
    assert files() == []


def test_the_oldest_files_are_dropped(collected):
    for seed in range(KEPT_FILES + 2):
        run(text=windows(seed))
        newest = max(files(), key=lambda file: file.stat().st_mtime_ns)
        os.utime(newest, (seed + 1, seed + 1))
        if seed == 0:
            (cache_directory() / "notes.txt").write_text("someone else's")
            os.utime(cache_directory() / "notes.txt", (0, 0))
    kept = [file for file in files() if file.suffix == ".safetensors"]
    assert len(kept) == KEPT_FILES
    assert (cache_directory() / "notes.txt").is_file()
    collected.clear()
    run(text=windows(KEPT_FILES + 1))
    assert collected == []
    run(text=windows(0))
    assert len(collected) == 1


def test_the_model_is_left_as_it_was(collected):
    model = tiny_model()
    before = copy.deepcopy(model.state_dict())
    run(model)
    run(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_directory_is_the_users_cache_unless_said_otherwise(monkeypatch, tmp_path):
    assert cache_directory() == tmp_path / "cache"
    monkeypatch.delenv("SPQ_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_directory() == tmp_path / "xdg" / "spq"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory() == tmp_path / ".cache" / "spq"
