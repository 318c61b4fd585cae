"""`spq serve MODEL`."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import typer

from spqlm.cli.options import Device, Dtype, Model
from spqlm.cli.tables import show
from spqlm.errors import SpqError
from spqlm.serving.vllm_plugin import OLDEST, too_old
from spqlm.versions import older, version_of_module

GROUP = "Use"
EXAMPLES = ("spq serve out", "spq serve out --port 8080 --engine transformers")

Engine = Literal["auto", "vllm", "transformers"]

# What transformers' server needs beyond transformers.
PACKAGES = ("fastapi", "uvicorn", "openai")


def command(
    model: Model,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "localhost",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen at.")] = 8000,
    engine: Annotated[
        Engine,
        typer.Option(help="What computes; auto takes vLLM where it is installed."),
    ] = "auto",
    dtype: Dtype = "auto",
    device: Device = None,
) -> None:
    """Answer requests to MODEL as OpenAI's interface does, until interrupted.

    There are chat completions, completions, a list of models and /health. Requests name the model
    as it is named here. vLLM takes directories and answers many requests at once; without it
    transformers' own server answers one after the other, and decodes natively.
    """
    if engine == "auto":
        engine = "vllm" if _suits_vllm(model, device) else "transformers"
    if engine == "vllm":
        _vllm(model, host, port, dtype, device)
    else:
        _transformers(model, host, port, dtype, device)


def _suits_vllm(model: str, device: str | None) -> bool:
    return (
        find_spec("vllm") is not None and device is None and (Path(model) / "config.json").exists()
    )


def _vllm(model: str, host: str, port: int, dtype: str, device: str | None) -> None:
    if find_spec("vllm") is None:
        raise SpqError(
            f"vLLM is not installed; install {OLDEST} or newer, or use --engine transformers"
        )
    if device is not None:
        raise SpqError("--device goes with --engine transformers; vLLM uses what it was built for")
    if not (Path(model) / "config.json").exists():
        raise SpqError(f"vLLM serves a directory of a checkpoint, and {model!r} is none")
    version = version_of_module("vllm")
    if older(version, OLDEST):
        raise SpqError(f"{too_old(version)}, or use --engine transformers")
    options = ["--model", model, "--host", host, "--port", str(port), "--dtype", dtype]
    # In place of this process, so that signals reach it.
    os.execv(sys.executable, [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *options])


def _transformers(model: str, host: str, port: int, dtype: str, device: str | None) -> None:
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise SpqError(
            f"serving needs {' and '.join(missing)}: pip install 'spqlm[serve]'; "
            "or install vLLM beside spqlm"
        )
    from spqlm.decoding.optimize import optimize
    from spqlm.serving.transformers_server import run
    from spqlm.sources.load import load_model

    loaded = load_model(model, dtype=dtype, device_map=device)
    if loaded.tokenizer is None:
        raise SpqError(f"model {model!r} has no tokenizer, which serving needs")
    show(f"Serving {model!r} at http://{host}:{port}/v1; Ctrl-C stops it.")
    run(optimize(loaded.model), loaded.tokenizer, model, host, port)
