import errno
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
from safetensors import SafetensorError

from spqlm.checkpoint import atomic
from spqlm.checkpoint.atomic import (
    atomic_directory,
    atomic_file,
    check_output,
    check_output_file,
)
from spqlm.checkpoint.exchange import exchange
from spqlm.errors import SpqError

OLD = {"config.json": b"old", "deep/weights.bin": bytes(range(256))}


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


@pytest.fixture
def out(tmp_path) -> Path:
    """A directory that already holds something, alone in its parent."""
    folder = tmp_path / "parent" / "out"
    for name, data in OLD.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return folder


def untouched(out: Path) -> bool:
    return contents(out) == OLD and [entry.name for entry in out.parent.iterdir()] == ["out"]


def write(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "config.json").write_bytes(b"new")
    (folder / "sub" / "more.bin").write_bytes(b"more")


NEW = {"config.json": b"new", "sub/more.bin": b"more"}


@pytest.mark.parametrize("existing", ["absent", "empty"])
def test_a_new_directory_appears_whole_once_the_block_ends(tmp_path, existing):
    out = tmp_path / "made" / "on" / "demand"
    if existing == "empty":
        out.mkdir(parents=True)
    with atomic_directory(out, overwrite=False) as partial:
        assert partial.parent == out.parent
        write(partial)
        assert not out.exists() or not any(out.iterdir())
    assert contents(out) == NEW
    assert [entry.name for entry in out.parent.iterdir()] == ["demand"]


def test_a_full_directory_is_replaced_where_overwriting_is_allowed(out):
    with atomic_directory(out, overwrite=True) as partial:
        write(partial)
        assert contents(out) == OLD
    assert contents(out) == NEW
    assert [entry.name for entry in out.parent.iterdir()] == ["out"]


def test_a_full_directory_is_refused_without_overwrite_before_any_work(out):
    entered = False
    with (
        pytest.raises(SpqError, match=r"'.*out' is not empty; pass --overwrite"),
        atomic_directory(out, overwrite=False),
    ):
        entered = True
    assert not entered
    assert untouched(out)


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_file_or_a_link_is_refused_whatever_was_allowed(tmp_path, out, overwrite):
    file, link, dangling = tmp_path / "file", tmp_path / "link", tmp_path / "dangling"
    file.write_bytes(b"keep")
    link.symlink_to(out)
    dangling.symlink_to(tmp_path / "nowhere")
    for path in (file, link, dangling):
        with pytest.raises(SpqError, match="exists and is not a directory"):
            check_output(path, overwrite=overwrite)
    assert file.read_bytes() == b"keep"


def test_an_absent_or_empty_output_passes_the_check(tmp_path):
    check_output(tmp_path / "absent", overwrite=False)
    check_output(tmp_path, overwrite=False)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError, SpqError])
def test_a_failure_leaves_what_was_there_and_nothing_beside_it(out, error):
    with pytest.raises(error), atomic_directory(out, overwrite=True) as partial:
        write(partial)
        raise error("stop")
    assert untouched(out)


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), PermissionError(), SafetensorError("io")],
)
def test_an_error_of_the_disk_becomes_one_sentence(out, error):
    with (
        pytest.raises(SpqError, match="cannot write 'out'") as caught,
        atomic_directory(out, overwrite=True) as partial,
    ):
        write(partial)
        raise error
    assert caught.value.__cause__ is error
    assert "\n" not in str(caught.value)
    assert untouched(out)


def test_a_disk_that_is_too_small_is_refused_before_any_work(out, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, 5_000_000))
    entered = False
    with (
        pytest.raises(SpqError, match="'out' has 5 MB free, but the checkpoint needs 7 MB"),
        atomic_directory(out, overwrite=True, needed_bytes=7_000_000),
    ):
        entered = True
    assert not entered
    assert untouched(out)
    with atomic_directory(out, overwrite=True, needed_bytes=5_000_000) as partial:
        write(partial)
    assert contents(out) == NEW


@pytest.mark.parametrize("out", ["file/out", "file/deep/out", "link/out"])
@pytest.mark.parametrize("check", [check_output, check_output_file])
def test_a_parent_that_cannot_be_made_is_refused(tmp_path, check, out):
    (tmp_path / "file").write_bytes(b"keep")
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(SpqError, match=r"cannot be made, since '(file|link)' is no directory"):
        check(tmp_path / out, overwrite=False)
    assert contents(tmp_path) == {"file": b"keep"}


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="the system has no such place")
@pytest.mark.parametrize("check", [check_output, check_output_file])
def test_a_place_that_takes_nothing_is_refused_before_any_work(check):
    with pytest.raises(SpqError, match="cannot be used"):
        check(Path("/proc/deep/out"), overwrite=False)


@pytest.mark.parametrize("check", [check_output, check_output_file])
def test_a_check_leaves_nothing(tmp_path, check):
    check(tmp_path / "deep" / "out", overwrite=False)
    assert not list(tmp_path.iterdir())
    with pytest.raises(SpqError):
        check(Path("/"), overwrite=False)


def test_what_was_there_comes_back_where_the_last_rename_fails(out, monkeypatch):
    monkeypatch.setattr(atomic, "exchange", lambda *_: False)
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if ".partial-" in self.name:
            raise OSError(errno.EIO, "input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with (
        pytest.raises(SpqError, match="cannot write"),
        atomic_directory(out, overwrite=True) as partial,
    ):
        write(partial)
    assert untouched(out)


def test_files_reach_the_disk_before_the_directory_appears(tmp_path, monkeypatch):
    out, synced = tmp_path / "out", []

    def fsync(descriptor: int) -> None:
        assert not out.exists()
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)

    monkeypatch.setattr(atomic.os, "fsync", fsync)
    with atomic_directory(out, overwrite=False) as partial:
        write(partial)
    assert {"config.json", "more.bin"} <= set(synced)


CHILD = """
import os, signal, sys
from pathlib import Path
from spqlm.checkpoint.atomic import atomic_directory

with atomic_directory(Path(sys.argv[1]), overwrite=True) as partial:
    (partial / "config.json").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_in_the_middle_of_writing_leaves_what_was_there(out):
    child = subprocess.run([sys.executable, "-c", CHILD, str(out)], env=environment(), check=False)
    assert child.returncode == -signal.SIGKILL
    assert contents(out) == OLD
    # The next run is not disturbed by what the killed one left beside it.
    with atomic_directory(out, overwrite=True) as partial:
        write(partial)
    assert contents(out) == NEW


class Killed(BaseException):
    """Stands in for a kill: whatever would be renamed after it is not."""


def test_a_kill_between_the_two_renames_is_undone_by_the_next_run(out, monkeypatch):
    monkeypatch.setattr(atomic, "exchange", lambda *_: False)
    rename = Path.rename

    def killed(self: Path, target: Path) -> Path:
        if self.name != "out":
            raise Killed
        return rename(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", killed)
        with pytest.raises(Killed), atomic_directory(out, overwrite=True) as partial:
            write(partial)
    assert not out.exists()
    with pytest.raises(SpqError, match="not empty"):
        check_output(out, overwrite=False)
    assert untouched(out)


def test_another_output_s_remains_are_left_alone(tmp_path):
    for name in ("outer.replaced-01234567", "out.replaced-mine"):
        (tmp_path / name).mkdir()
    check_output(tmp_path / "out", overwrite=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux exchanges directories here")
def test_what_is_replaced_is_never_absent(out, monkeypatch):
    monkeypatch.setattr(Path, "rename", lambda *_: pytest.fail("a rename leaves a gap"))
    with atomic_directory(out, overwrite=True) as partial:
        write(partial)
    assert not untouched(out)
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_two_directories_change_places(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    if exchange(tmp_path / "a", tmp_path / "b"):
        assert (tmp_path / "a" / "b").exists() and (tmp_path / "b" / "a").exists()
    assert not exchange(tmp_path / "a", tmp_path / "absent")


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path, caplog):
    left = [tmp_path / f"out.partial-0123456{n}" for n in range(3)]
    left[0].mkdir()
    (left[0] / "model.safetensors").write_bytes(b"half")
    left[1].write_bytes(b"half")
    (tmp_path / "out").mkdir()
    (tmp_path / "out.replaced-01234567").mkdir()
    for path in tmp_path.iterdir():
        os.utime(path, (0, 0))
    left[2].mkdir()  # of a run that has only just begun
    check_output(tmp_path / "out", overwrite=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", left[2].name]
    assert "out.partial-01234560, which a killed run left, is removed" in caplog.text


def test_what_a_living_run_writes_is_left_alone(tmp_path):
    with atomic_directory(tmp_path / "out", overwrite=False) as partial:
        write(partial)
        os.utime(partial, (0, 0))
        check_output(tmp_path / "out", overwrite=False)
    assert not list(tmp_path.glob("out.partial*"))


@pytest.mark.parametrize("inside", ["", "model", "model/config.json"])
def test_an_output_that_holds_what_is_read_is_not_replaced(tmp_path, inside):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "link").symlink_to(tmp_path / "model")
    for read in (tmp_path / inside, os.path.relpath(tmp_path / inside)):
        with pytest.raises(SpqError, match="which replacing it would delete"):
            check_output(tmp_path, overwrite=True, inputs=[read])
    with pytest.raises(SpqError, match="which replacing it would delete"):
        check_output(tmp_path / "model", overwrite=True, inputs=["demo", tmp_path / "link"])
    check_output(tmp_path / "model", overwrite=True, inputs=["demo", "x" * 5000, tmp_path])


def test_the_directory_one_is_in_is_not_replaced(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(SpqError, match="would delete"):
        check_output(tmp_path, overwrite=True)


def test_a_name_that_the_system_does_not_take_is_refused(tmp_path):
    with pytest.raises(SpqError, match=r"'x+'\.\.\. cannot be used|x\.\.\.' cannot be used"):
        check_output(Path("x" * 300), overwrite=False)


def environment() -> dict[str, str]:
    """Where this process found the package, the child finds it too."""
    package = str(Path(atomic.__file__).parents[2])
    paths = [package, os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def test_a_file_appears_whole_and_replaces_only_when_asked(tmp_path):
    out = tmp_path / "deep" / "model.gguf"
    with atomic_file(out, overwrite=False) as partial:
        partial.write_bytes(b"new")
        assert not out.exists()
    assert out.read_bytes() == b"new"
    with pytest.raises(SpqError, match="exists; pass --overwrite"):
        with atomic_file(out, overwrite=False):
            pass
    with pytest.raises(KeyboardInterrupt):
        with atomic_file(out, overwrite=True) as partial:
            partial.write_bytes(b"half")
            raise KeyboardInterrupt
    assert out.read_bytes() == b"new"
    with atomic_file(out, overwrite=True) as partial:
        partial.write_bytes(b"newer")
    assert out.read_bytes() == b"newer" and list(out.parent.iterdir()) == [out]


def test_a_directory_is_no_file(tmp_path):
    with pytest.raises(SpqError, match="one file is written"):
        with atomic_file(tmp_path, overwrite=True):
            pass
