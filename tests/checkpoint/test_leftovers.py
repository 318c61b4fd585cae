"""What killed runs left is found; what living ones use, and what is not ours, stays."""

import os
import tempfile

import pytest

from spqlm.cache import RunState, cache_directory
from spqlm.checkpoint.leftovers import clean
from spqlm.locks import in_use

HEX = "0123abcd"


def made(path, *files, old=True):
    """A directory with files, or a file where there are none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for name in files:
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"1234")
    if not files:
        path.write_bytes(b"1234")
    if old:
        os.utime(path, (0, 0))
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    (tmp_path / "outputs").mkdir()
    return tmp_path / "outputs"


def fates(found):
    return {left.path.name: left.fate for left in found}


def test_every_kind_is_found_and_removed(folder, tmp_path):
    dead = [
        made(folder / f"out.partial-{HEX}", "model.safetensors", "deep/x"),
        made(folder / f"out.gguf.partial-{HEX}"),
        made(folder / f".results.json.partial-{HEX}"),
        made(folder / f"there.replaced-{HEX}", "config.json"),
        made(cache_directory() / "prices-key" / "layer.123.partial"),
        made(cache_directory() / "prices-key" / ".tmpAbCdEf"),
        made(tmp_path / "scratch" / "spq-scratch-abc", "out/config.json"),
    ]
    made(folder / "there", "config.json")
    found = clean([folder, folder / "." / ".." / folder.name])
    assert fates(found) == {path.name: "removed" for path in dead}
    assert found[0].bytes == 4 and {left.bytes for left in found} == {4, 8}
    assert not any(path.exists() for path in dead)
    assert [path.name for path in folder.iterdir()] == ["there"]
    assert not clean([folder])


def test_a_dry_run_touches_nothing(folder):
    path = made(folder / f"out.partial-{HEX}", "x")
    assert fates(clean([folder], dry_run=True)) == {path.name: "removed"}
    assert path.exists()


def test_an_output_that_was_being_replaced_gets_its_name_back(folder):
    made(folder / f"out.replaced-{HEX}", "config.json")
    assert fates(clean([folder])) == {f"out.replaced-{HEX}": "put back"}
    assert (folder / "out" / "config.json").read_bytes() == b"1234"
    assert len(list(folder.iterdir())) == 1


def test_what_a_run_goes_on_from_is_kept_until_it_is_asked_for(folder):
    state = made(folder / "out.unfinished", "budget-key/layers.0.safetensors", "weights-1/.tmpAb")
    kept = made(cache_directory() / "run-mask-key", "layers.0.safetensors")
    assert fates(clean([folder])) == {state.name: "kept", kept.name: "kept"}
    assert state.exists() and kept.exists()
    assert set(fates(clean([folder], unfinished=True)).values()) == {"removed"}
    assert not state.exists() and not kept.exists()


def test_what_is_in_use_new_or_not_ours_stays(folder):
    living = made(folder / f"out.partial-{HEX}", "x")
    made(folder / f"other.partial-{HEX}", "x", old=False)
    made(folder / "notes.unfinished", "novel.txt")
    made(folder / "out.partial-mine", "x")
    made(cache_directory() / "run-mask-key", "layers.0.safetensors", old=False)
    with in_use(living):
        assert not clean([folder], unfinished=True)
    assert len(list(folder.iterdir())) == 4


def test_the_state_of_a_living_run_stays(folder):
    with RunState(folder / "out") as run:
        made(run.directory("mask", "key"), "layers.0.safetensors")
        os.utime(folder / "out.unfinished", (0, 0))
        assert not clean([folder], unfinished=True)
    assert fates(clean([folder])) == {"out.unfinished": "kept"}


def test_what_cannot_be_removed_is_said(folder, monkeypatch):
    made(folder / f"out.partial-{HEX}", "x")
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)
    assert set(fates(clean([folder])).values()) == {"cannot be removed"}
