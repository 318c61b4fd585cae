import os
import sys

import pytest

from spqlm.cli import serve
from spqlm.errors import SpqError


@pytest.fixture
def installed(monkeypatch):
    """Decide what is installed."""

    def these(*names: str) -> None:
        monkeypatch.setattr(serve, "find_spec", lambda name: name if name in names else None)

    return these


def test_what_is_missing_is_named_with_the_command_that_installs_it(installed):
    installed("uvicorn")
    with pytest.raises(SpqError, match=r"needs fastapi and openai: pip install 'spqlm\[serve\]'"):
        serve.command("out")


def test_vllm_takes_this_process_over_where_it_is_installed(installed, monkeypatch, tmp_path):
    installed("vllm")
    (tmp_path / "config.json").touch()
    monkeypatch.setattr(serve, "version_of_module", lambda name: "0.32.1")
    run = []
    monkeypatch.setattr(os, "execv", lambda program, arguments: run.append(arguments))
    serve.command(str(tmp_path), port=81)
    expected = ["--model", str(tmp_path), "--host", "localhost", "--port", "81", "--dtype", "auto"]
    server = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    assert run == [[*server, *expected]]


def test_what_vllm_does_not_take_goes_to_transformers(installed, tmp_path):
    installed("vllm")
    with pytest.raises(SpqError, match="serving needs fastapi"):
        serve.command(str(tmp_path))  # an adapter, which has no config of a model
    (tmp_path / "config.json").touch()
    with pytest.raises(SpqError, match="serving needs fastapi"):
        serve.command(str(tmp_path), device="cpu")


def test_vllm_is_refused_where_it_cannot_serve(installed, tmp_path):
    installed()
    with pytest.raises(SpqError, match=r"vLLM is not installed; install 0\.32 or newer"):
        serve.command(str(tmp_path), engine="vllm")
    installed("vllm")
    with pytest.raises(SpqError, match="directory of a checkpoint, and 'demo' is none"):
        serve.command("demo", engine="vllm")
    with pytest.raises(SpqError, match="--device goes with --engine transformers"):
        serve.command(str(tmp_path), engine="vllm", device="cpu")


@pytest.mark.parametrize("engine", ["auto", "vllm"])
def test_a_vllm_that_is_too_old_is_refused(engine, installed, monkeypatch, tmp_path):
    installed("vllm")
    (tmp_path / "config.json").touch()
    monkeypatch.setattr(serve, "version_of_module", lambda name: "0.9.2")
    refusal = (
        r"needs vLLM 0\.32 or newer, and this is 0\.9\.2: pip install -U vllm, or use --engine"
    )
    with pytest.raises(SpqError, match=refusal):
        serve.command(str(tmp_path), engine=engine)
