"""What a living process uses is told apart from what a killed one left."""

import multiprocessing
import os
import signal
import sys
import tempfile
from pathlib import Path

import pytest

from spqlm.locks import SCRATCH, claimed, in_use, scratch

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="locks are POSIX's")


def old(path):
    os.utime(path, (0, 0))
    return path


def claims(path, **settled):
    with claimed(path, **settled) as free:
        return free


@pytest.mark.parametrize("shared", [False, True])
def test_what_is_in_use_is_not_claimed(tmp_path, shared):
    path = old(tmp_path)
    assert claims(path)
    with in_use(path, shared=shared):
        assert not claims(path)
    assert claims(path)


def test_several_may_share(tmp_path):
    with in_use(old(tmp_path), shared=True):
        with in_use(tmp_path, shared=True):
            pass
        assert not claims(tmp_path)


def test_what_is_new_or_gone_is_not_claimed(tmp_path):
    assert not claims(tmp_path) and claims(tmp_path, settled=0)
    assert not claims(tmp_path / "absent")


def use_and_die(path):
    with in_use(path):
        os.kill(os.getpid(), signal.SIGKILL)


def scratch_and_die(tell):
    with scratch() as path:
        tell.send(str(path))
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_uses_nothing(tmp_path):
    forked = multiprocessing.get_context("fork")
    process = forked.Process(target=use_and_die, args=(old(tmp_path),))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert claims(tmp_path)


def test_a_scratch_directory_is_in_use_until_it_is_gone(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with scratch() as path:
        assert path.parent == tmp_path and path.name.startswith(SCRATCH)
        assert not claims(old(path))
    assert not path.exists()
    forked = multiprocessing.get_context("fork")
    hear, tell = forked.Pipe()
    process = forked.Process(target=scratch_and_die, args=(tell,))
    process.start()
    process.join()
    assert claims(old(Path(hear.recv())))
