import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from spqlm.cache import (
    KEPT_RUNS,
    UNREADABLE,
    RunState,
    cache_directory,
    read_tensors,
    write_tensors,
)


def test_a_run_that_is_through_leaves_nothing():
    run = RunState()
    for stage in ("budget", "distill"):
        directory = run.directory(stage, "key")
        directory.mkdir(parents=True)
        (directory / "file").write_text("finished")
    run.forget()
    assert not cache_directory().exists()


def test_what_others_keep_stays():
    run, other = RunState(), RunState()
    mine, theirs = run.directory("budget", "mine"), other.directory("budget", "theirs")
    for directory in (mine, theirs):
        directory.mkdir(parents=True)
    run.forget()
    assert theirs.is_dir() and not mine.exists()
    # Its own work is gone already, or was never begun.
    run.forget()


def test_work_that_nobody_goes_on_with_does_not_pile_up():
    for number in range(KEPT_RUNS + 5):
        RunState().directory("budget", f"{number}").mkdir(parents=True)
    assert len(list(cache_directory().glob("run-*"))) == KEPT_RUNS + 1


TENSORS = {"a": torch.arange(6).view(2, 3), "b": torch.tensor(2.5), "c": torch.empty(0, 4)}


def _written():
    file = cache_directory() / "prices-key" / "layer.safetensors"
    write_tensors(file, TENSORS, {"units": "[]"})
    return file


def _with(file, tensors=None, **metadata):
    """The file as someone might change it, checksum included."""
    with safe_open(file, "pt") as opened:
        held = {name: opened.get_tensor(name) for name in opened.keys()}
        stated = opened.metadata()
    save_file(held | (tensors or {}), file, stated | metadata)


def test_tensors_come_back_as_they_were_written():
    tensors, metadata = read_tensors(_written())
    assert metadata == {"units": "[]"}
    assert {name: t.tolist() for name, t in tensors.items()} == {
        name: t.tolist() for name, t in TENSORS.items()
    }


@pytest.mark.parametrize(
    "change",
    [
        lambda file: _with(file, {"b": torch.tensor(0.0)}),
        lambda file: _with(file, {"a": TENSORS["a"].view(3, 2)}),
        lambda file: _with(file, {"d": torch.zeros(1)}),
        lambda file: _with(file, units="{}"),
        lambda file: _with(file, checksum="0"),
        lambda file: save_file(TENSORS, file, {"units": "[]"}),
        lambda file: file.write_bytes(file.read_bytes()[:-1]),
        lambda file: file.write_bytes(b""),
        lambda file: file.unlink(),
    ],
)
def test_a_changed_file_is_not_read(change):
    file = _written()
    change(file)
    with pytest.raises(UNREADABLE):
        read_tensors(file)


@pytest.mark.parametrize("place", ["prices-key/other", "prices-other/layer", "prices-key"])
def test_a_file_of_another_key_is_not_read(place):
    file = _written()
    other = cache_directory() / f"{place}.safetensors"
    other.parent.mkdir(exist_ok=True)
    file.rename(other)
    with pytest.raises(ValueError, match="checksum is wrong"):
        read_tensors(other)


def test_the_cache_may_move(monkeypatch, tmp_path):
    write_tensors(cache_directory() / "generated-key.safetensors", TENSORS, {})
    cache_directory().rename(tmp_path / "elsewhere")
    monkeypatch.setenv("SPQ_CACHE_DIR", str(tmp_path / "elsewhere"))
    assert read_tensors(cache_directory() / "generated-key.safetensors")[0].keys() == TENSORS.keys()
