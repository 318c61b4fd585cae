"""What stops a release, and which Pythons it is tried with."""

import json
import subprocess
import sys
import zipfile
from datetime import date
from importlib.metadata import version
from pathlib import Path

import pytest
from tests.docs.pages import ROOT

GOOD = {"native": "avx2", "warnings": [], "openmp": ["/torch/lib/libgomp.so.1"]}


@pytest.fixture
def release(script):
    return script("release")


@pytest.fixture
def pythons(script):
    return script("pythons")


def test_the_newest_release_in_the_changelog_is_the_version(release):
    text = "## Unreleased\n\n## 1.2.0 - 2030-01-31\n\n### A\n\n- b\n\n## 1.1.0 - 2029-01-01\n"
    assert release.changelog_date(text, "1.2.0") == date(2030, 1, 31)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("# Changelog\n", "empty section Unreleased"),
        ("## Unreleased\n\n- new\n\n## 1.2.0 - 2030-01-31\n", "empty section Unreleased"),
        ("## 1.2.0 - 2030-01-31\n", "empty section Unreleased"),
        ("## Unreleased\n", "newest release is ''"),
        ("## Unreleased\n## 1.1.0 - 2030-01-31\n", "newest release is '1.1.0 - 2030-01-31'"),
        ("## Unreleased\n## 1.2.0\n", "not '1.2.0 - YYYY-MM-DD'"),
    ],
)
def test_a_changelog_that_says_otherwise_stops_it(release, text, said):
    with pytest.raises(release.Failure, match=said):
        release.changelog_date(text, "1.2.0")


def test_this_changelog_names_this_version(release):
    """With or without lines under Unreleased, which only a release has to sort in."""
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    _, _, rest = text.partition("\n## Unreleased\n")
    released = "## Unreleased\n\n## " + rest.partition("\n## ")[2]
    assert release.changelog_date(released, release.Check(Path()).version)


def test_files_that_are_not_committed_stop_it(release, monkeypatch):
    monkeypatch.setattr(release, "run", lambda *words, **_: " M a.py" if "status" in words else "")
    with pytest.raises(release.Failure, match=r"not committed:\n M a\.py"):
        release.Check(Path()).state()


def test_a_tag_that_is_there_stops_it(release, monkeypatch):
    monkeypatch.setattr(release, "run", lambda *words, **_: "v1" if "tag" in words else "")
    with pytest.raises(release.Failure, match="is there already"):
        release.Check(Path()).state()


@pytest.mark.parametrize("extra", [(), ("spqlm.libs/libgomp-abc.so.1",)])
def test_libraries_of_others_in_a_wheel_are_found(release, tmp_path, extra):
    names = ("spqlm/__init__.py", "spqlm/native/_kernels.so", *extra)
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        for name in names:
            wheel.writestr(name, "")
    assert release.bundled(tmp_path / "a.whl") == list(extra)


@pytest.mark.parametrize(
    "fact", [{"native": None}, {"warnings": ["slow"]}, {"openmp": []}, {"openmp": ["a", "b"]}]
)
def test_kernels_that_are_not_used_or_a_second_openmp_stop_it(release, fact):
    assert release.native_facts(GOOD) is GOOD
    with pytest.raises(release.Failure, match="not used as it should be"):
        release.native_facts(GOOD | fact)


def test_a_command_that_fails_keeps_what_it_said(script):
    run = script("commands").run
    assert run(sys.executable, "-c", "print('well')") == "well"
    with pytest.raises(subprocess.CalledProcessError, match="exit status 3") as failure:
        run(sys.executable, "-c", "import sys; print('why', file=sys.stderr); sys.exit(3)")
    assert failure.value.stderr == "why\n"


def test_a_step_that_fails_ends_it_with_what_was_said(release, monkeypatch, capsys):
    def fail():
        """Something that cannot work."""
        raise subprocess.CalledProcessError(1, "c++", "out", "no such header")

    monkeypatch.setattr(release.Check, "steps", lambda self, part: [fail])
    monkeypatch.setattr(sys, "argv", ["release.py"])
    with pytest.raises(SystemExit, match="release: failed: Command 'c\\+\\+'"):
        release.main()
    captured = capsys.readouterr()
    assert "Something that cannot work." in captured.out
    assert "no such header" in captured.err


@pytest.mark.slow
def test_without_torch_the_sources_compile_and_the_library_opens(tmp_path):
    command = [sys.executable, ROOT / ".ci/smoke.py", "parts"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_this_python_is_found_and_one_that_lies_is_not(pythons, monkeypatch, tmp_path):
    here = ".".join(map(str, sys.version_info[:2]))
    assert here in pythons.supported()
    assert pythons.find(here) is not None
    liar = tmp_path / "python3"
    liar.write_text("#!/bin/sh\necho 3.1\n")
    liar.chmod(0o755)
    monkeypatch.setattr(pythons, "candidates", lambda _: [Path("/nowhere"), liar])
    assert pythons.find(here) is None


def test_pyenv_and_the_path_are_looked_at(pythons, monkeypatch, tmp_path):
    python = tmp_path / "versions/3.12.1/bin/python3"
    python.parent.mkdir(parents=True)
    python.touch()
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    found = pythons.candidates("3.12")
    assert Path("python3.12") in found and python in found


@pytest.mark.slow
def test_the_smoke_test_passes_here(tmp_path, script):
    """The package as it is installed for the tests, in an empty folder."""
    command = [sys.executable, ROOT / ".ci/smoke.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts["spqlm"] == version("spqlm")
    script("release").native_facts(facts)
