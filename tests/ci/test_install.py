"""What `make install` does before and after it lets pip work."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.docs.pages import ROOT

CONSTRAINTS = "numpy==2.4.6\ntorch==2.13.0\ntriton==3.7.1\n"


@pytest.fixture
def install(script):
    return script("install")


@pytest.fixture
def pip(install, monkeypatch, tmp_path):
    """Pip as it would be called; `plans` is what its dry run reports."""

    class Pip:
        def __init__(self):
            self.plans, self.calls = torch_wheel("2.13.0+cpu"), []

        def __call__(self, *words):
            self.calls.append(words)
            if "--report" in words:
                Path(words[words.index("--report") + 1]).write_text(json.dumps(self.plans))

    monkeypatch.setattr(install, "pip", fake := Pip())
    monkeypatch.setattr(install.sys, "prefix", str(tmp_path))
    monkeypatch.delenv("SPQ_ALLOW_CUDA", raising=False)
    return fake


def torch_wheel(version, *requires):
    return {"install": [{"metadata": {"version": version, "requires_dist": list(requires)}}]}


CUDA = "nvidia-cudnn-cu12==9.1; platform_system == 'Linux'"


@pytest.mark.parametrize(
    ("plan", "platform", "gpu"),
    [
        (torch_wheel("2.13.0+cpu", "filelock", "sympy"), "linux", False),
        (torch_wheel("2.13.0", "filelock"), "linux", False),
        (torch_wheel("2.13.0+cu129", "filelock"), "linux", True),
        (torch_wheel("2.13.0+rocm6.4", "filelock"), "linux", True),
        (torch_wheel("2.13.0+xpu", "filelock"), "linux", True),
        (torch_wheel("2.13.0", "filelock", CUDA), "linux", True),
        (torch_wheel("2.13.0", "cuda-bindings<14"), "linux", True),
        (torch_wheel("2.13.0", "triton==3.7.1"), "linux", True),
        (torch_wheel("2.13.0", CUDA), "darwin", False),
        (torch_wheel("2.13.0", "triton; extra == 'inductor'"), "linux", False),
        ({"install": []}, "linux", False),
    ],
)
def test_a_build_for_gpus_is_known_by_what_it_is_called_and_needs(install, plan, platform, gpu):
    assert install.planned_for_gpu(plan, platform) is gpu


@pytest.mark.parametrize(
    ("written", "gpu"),
    [
        ("__version__ = '2.13.0+cpu'\ncuda = None\nhip = None\n", False),
        ("cuda: str | None = '12.9'\n", True),
        ("cuda = None\nhip = '6.4'\n", True),
        ("cuda = hip = None\nxpu = '2025'\n", True),
    ],
)
def test_an_installed_torch_says_what_it_was_built_for(install, tmp_path, written, gpu):
    file = tmp_path / "version.py"
    file.write_text(written)
    assert install.built_for_gpu(file) is gpu


def test_the_torch_that_is_there_is_pinned_in_place_of_the_usual_one(install):
    found = install.pinned(CONSTRAINTS, "2.12.1+cpu", ["filelock"])
    assert found.splitlines() == ["numpy==2.4.6", "triton==3.7.1", "torch==2.12.1+cpu"]


def test_a_torch_that_asks_for_triton_gets_the_one_that_it_asks_for(install):
    found = install.pinned(CONSTRAINTS, "2.13.0", ["triton==3.6.0; platform_system == 'Linux'"])
    assert found.splitlines() == ["numpy==2.4.6", "torch==2.13.0"]


def test_a_build_for_gpus_is_refused_before_anything_is_installed(install, pip):
    pip.plans = torch_wheel("2.13.0", CUDA)
    with pytest.raises(SystemExit, match=r"torch==2\.13\.0 to a GPU build.*SPQ_ALLOW_CUDA=1"):
        install.install_torch("torch==2.13.0")
    assert all("--dry-run" in call for call in pip.calls)


def test_a_build_for_gpus_that_came_all_the_same_is_taken_out_again(install, pip, monkeypatch):
    monkeypatch.setattr(install, "built_for_gpu", lambda file: file.is_file())
    with pytest.raises(SystemExit, match="GPU build"):
        install.install_torch("torch==2.13.0")
    assert pip.calls[-1] == ("uninstall", "--quiet", "--yes", "torch")


def test_a_build_for_gpus_is_taken_where_it_is_allowed(install, pip, monkeypatch):
    pip.plans = torch_wheel("2.13.0", CUDA)
    monkeypatch.setenv("SPQ_ALLOW_CUDA", "1")
    install.install_torch("torch==2.13.0")
    assert ("install", "--no-deps", "torch==2.13.0") in pip.calls


def test_torch_comes_first_and_the_rest_is_held_to_the_versions_that_were_tried(
    install, pip, tmp_path
):
    import torch

    install.install_torch("torch==2.13.0")
    install.install_spqlm("model==1")
    install.install_tools()
    pins = tmp_path / "constraints.txt"
    assert pip.calls[1:] == [
        ("install", "--no-deps", "torch==2.13.0"),
        ("install", "-c", str(pins), "-e", f"{ROOT}[gguf,report]"),
        ("install", "--no-deps", "model==1"),
        ("install", "-c", str(pins), "spqlm[dev]"),
    ]
    known = (ROOT / "constraints.txt").read_text().splitlines()
    assert pins.read_text().splitlines()[-1] == f"torch=={torch.__version__}"
    assert set(known) - set(pins.read_text().splitlines()) == {"torch==2.13.0"}


@pytest.mark.parametrize("compiled", [True, False])
def test_an_installation_without_kernels_says_so_at_the_end(
    install, pip, compiled, tmp_path, monkeypatch, capsys
):
    library = tmp_path / "src/spqlm/native/_kernels.so"
    library.parent.mkdir(parents=True)
    if compiled:
        library.touch()
    monkeypatch.setattr(install, "ROOT", tmp_path)
    install.install_spqlm("model==1")
    assert ("without its native kernels" in capsys.readouterr().err) is not compiled


def test_what_pip_cannot_do_ends_it(install, monkeypatch):
    monkeypatch.setattr(install.sys, "executable", "false")
    with pytest.raises(SystemExit) as stop:
        install.pip("install", "torch")
    assert stop.value.code == 1


def test_an_old_python_is_told_what_is_needed(install, monkeypatch, tmp_path):
    monkeypatch.setattr(install.sys, "version_info", (3, 10, 13))
    with pytest.raises(SystemExit, match=r"is Python 3\.10, and SPQ needs 3\.11"):
        install.make_environment(tmp_path / "venv")
    assert not (tmp_path / "venv").exists()


def test_a_python_without_venv_is_told_which_package_brings_it(install, monkeypatch, tmp_path):
    monkeypatch.setattr(install.sys, "executable", "false")
    with pytest.raises(SystemExit, match="python3-venv"):
        install.make_environment(tmp_path / "venv")


@pytest.mark.slow
def test_the_environment_has_pip(tmp_path):
    """In a process of its own, with nothing but the standard library."""
    folder = tmp_path / "venv"
    command = [sys.executable, "-I", "-S", ROOT / ".ci/install.py", "environment", folder]
    subprocess.run(command, check=True, env={"PATH": ""})
    done = subprocess.run([folder / "bin/python", "-m", "pip", "--version"], capture_output=True)
    assert done.returncode == 0


def test_make_says_which_python_is_missing(tmp_path):
    command = ["make", "install", f"VENV={tmp_path / 'venv'}", "PYTHON=python9"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert "python9 is missing" in done.stderr
