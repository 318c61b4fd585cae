"""`spq clean`."""

import json
import os
import tempfile

import pytest


@pytest.fixture(autouse=True)
def _own_scratch(tmp_path, monkeypatch):
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))


def test_what_was_left_is_shown_and_removed(run, tmp_path, monkeypatch):
    path = tmp_path / "[b]out.partial-0123abcd"
    path.mkdir()
    (path / "model.safetensors").write_bytes(bytes(2_000_000))
    os.utime(path, (0, 0))
    code, out, _ = run("clean", tmp_path, "--dry-run")
    assert code == 0 and "half of an output" in out and "2.0 MB" in out and "would become" in out
    assert path.exists() and "[b]out.partial" in out
    monkeypatch.chdir(tmp_path)
    (found,) = json.loads(run("clean", "--json")[1])
    assert found["fate"] == "removed" and found["bytes"] == 2_000_000
    assert not path.exists()
    assert "left nothing" in run("clean")[1]


def test_work_that_can_be_gone_on_with_is_kept(run, tmp_path):
    state = tmp_path / "out.unfinished"
    state.mkdir()
    os.utime(state, (0, 0))
    assert "--unfinished removes it" in run("clean", tmp_path)[1]
    assert state.exists()
    assert "kept" not in run("clean", tmp_path, "--unfinished")[1]
    assert not state.exists()


def test_a_place_that_is_not_there_is_refused(run, tmp_path):
    code, _, err = run("clean", tmp_path / "absent")
    assert code == 1 and "is not a directory" in err and err.count("\n") == 1
