"""What setup.py makes of a compiler that is there, that fails, or that is missing."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest
from tests.docs.pages import ROOT

WHEEL = "from setuptools.build_meta import build_wheel; build_wheel('dist')"
SDIST = "from setuptools.build_meta import build_sdist; build_sdist('dist')"
# Writes what it is asked to write: the real compilers are tried by `make release-check`.
COMPILER = f"#!{sys.executable}\nimport sys\nopen(sys.argv[sys.argv.index('-o') + 1], 'w')\n"
SET = ("CC", "CXX", "SPQ_REQUIRE_NATIVE", "SPQ_WITHOUT_NATIVE")


@pytest.fixture
def sources(tmp_path):
    """The files that a wheel is made of."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("*.so"))
    (tmp_path / "dist").mkdir()
    return tmp_path


def build(folder, program, **variables):
    environment = {name: value for name, value in os.environ.items() if name not in SET}
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env=environment | variables,
        capture_output=True,
        text=True,
    )


def names(folder):
    return [file.name for file in (folder / "dist").iterdir()]


def test_one_wheel_serves_every_python(sources):
    compiler = sources / "c++"
    compiler.write_text(COMPILER)
    compiler.chmod(0o755)
    done = build(sources, WHEEL, CXX=str(compiler), CC=str(compiler))
    assert done.returncode == 0, done.stderr
    (wheel,) = (sources / "dist").iterdir()
    python, abi, platform = wheel.stem.split("-")[-3:]
    assert (python, abi) == ("py3", "none")
    assert platform.startswith(sys.platform)
    assert "spqlm/native/_kernels.so" in zipfile.ZipFile(wheel).namelist()


@pytest.mark.parametrize("compiler", ["false", "/nowhere/c++"])
def test_a_compiler_that_fails_ends_the_build_and_says_how_to_go_on(sources, compiler):
    done = build(sources, WHEEL, CXX=compiler)
    assert done.returncode != 0
    assert "the native kernels did not compile" in done.stderr
    assert "SPQ_WITHOUT_NATIVE=1" in done.stderr
    assert names(sources) == []


@pytest.mark.parametrize(
    "variables",
    [{"PATH": "/nowhere"}, {"SPQ_WITHOUT_NATIVE": "1", "CXX": "false"}],
    ids=["no compiler", "not wanted"],
)
def test_without_the_library_the_wheel_is_for_every_machine_and_the_build_says_so(
    sources, variables
):
    done = build(sources, WHEEL, **variables)
    assert done.returncode == 0, done.stderr
    assert "no native kernels" in done.stderr
    (name,) = names(sources)
    assert name.endswith("-py3-none-any.whl")


def test_where_the_library_is_required_a_missing_compiler_ends_the_build(sources):
    done = build(sources, WHEEL, PATH="/nowhere", SPQ_REQUIRE_NATIVE="1")
    assert done.returncode != 0
    assert "there is no C++ compiler" in done.stderr


def test_the_sdist_holds_every_file_of_the_repository(tmp_path):
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode or not listed.stdout:
        pytest.skip("not a clone")
    tracked = {name for name in listed.stdout.splitlines() if (ROOT / name).exists()}
    for name in tracked:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "src/spqlm/native/_kernels.so").touch()
    (tmp_path / "dist").mkdir()
    done = build(tmp_path, SDIST)
    assert done.returncode == 0, done.stderr
    (sdist,) = (tmp_path / "dist").iterdir()
    with tarfile.open(sdist) as archive:
        files = {member.name.partition("/")[2] for member in archive if member.isfile()}
    assert tracked <= files
    assert not any(name.endswith(".so") for name in files)
