"""What no part of a command foresaw ends in one sentence, too."""

import errno
import os
import resource
import subprocess
import sys

import pytest

import spqlm.cli
from spqlm.cli import main
from spqlm.cli.failures import sentence
from spqlm.errors import SpqError

ALLOCATION = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 25000000 bytes."


def caused(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(ALLOCATION),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        ImportError("libtorch.so: failed to map segment from shared object"),
        caused(SpqError("cannot load model 'x': it"), RuntimeError(ALLOCATION)),
    ],
)
def test_out_of_memory_says_what_there_was_and_what_needs_less(error):
    said = sentence(error, "eval")
    assert said.startswith("error: out of memory: ") and "MB were free" in said
    assert "a shorter --context" in said and said.endswith("needs less")
    assert ("25.0 MB more were needed" in said) == (ALLOCATION in f"{error}{error.__cause__}")


def test_an_error_of_ours_that_mentions_memory_is_itself():
    said = sentence(SpqError("the models do not fit: out of memory"), "bench")
    assert said == "error: the models do not fit: out of memory"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_named(tmp_path, number, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = "no/results.json"
    said = sentence(OSError(number, os.strerror(number), file), "eval")
    assert said.startswith(f"error: no space to write {file!r}: its disk has ")
    assert "SPQ_CACHE_DIR" in said


def test_other_trouble_of_the_system_names_the_file():
    said = sentence(PermissionError(errno.EACCES, "Permission denied", "x.json"), "eval")
    assert said == "error: Permission denied 'x.json'"


def test_what_is_a_mistake_of_ours_says_how_to_see_it(monkeypatch, capsys):
    def broken(**_):
        raise KeyError("no such\nthing")

    monkeypatch.setattr(spqlm.cli, "app", broken)
    monkeypatch.setattr(sys, "argv", ["spq", "eval", "demo"])
    with pytest.raises(SystemExit) as stop:
        main()
    err = capsys.readouterr().err
    assert stop.value.code == 1 and err.count("\n") == 1
    assert err.startswith("spq: unexpected KeyError: ") and "--debug" in err


def limited(kind, size, *arguments):
    def limit():
        resource.setrlimit(kind, (size, size))

    script = "import sys; from spqlm.cli import main; sys.argv[0] = 'spq'; main()"
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        preexec_fn=limit,
    )


def test_a_result_that_does_not_fit_leaves_what_was_there(int8, tmp_path):
    out = tmp_path / "rows.json"
    out.write_text("before")
    run = limited(resource.RLIMIT_FSIZE, 2000, "inspect", int8, "--output", out)
    assert run.returncode == 1 and "Traceback" not in run.stderr
    assert run.stderr.startswith("spq: error: no space to write")
    assert out.read_text() == "before"
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name]


def test_a_checkpoint_that_does_not_fit_is_not_written(source, tmp_path):
    run = limited(resource.RLIMIT_FSIZE, 50_000, "compress", source, tmp_path / "out")
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1].startswith("spq: error: no space to write")
    assert sorted(path.name for path in tmp_path.iterdir() if "cache" not in path.name) == [
        "source"
    ]


def test_too_little_memory_for_the_libraries_is_said(source):
    run = limited(resource.RLIMIT_AS, 300_000_000, "eval", source)
    assert run.returncode == 1 and "Traceback" not in run.stderr
    assert run.stderr.splitlines()[-1].startswith("spq: error: out of memory")
