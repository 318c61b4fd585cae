"""The models of the timed engines, made once each and kept."""

import subprocess
from pathlib import Path

from engines import ENGINES, WORKERS, settings
from environments import outcome, python_of
from safetensors.torch import save_file

import spqlm
from spqlm.data import encode, load_text
from spqlm.recipe import Recipe, load_recipe
from spqlm.sources.gguf import demo_file
from spqlm.sources.load import load_tokenizer

INT4 = Recipe.from_dict(
    {
        "calibration": {"source": "builtin", "windows": 4, "context": 128},
        "stages": [
            {
                "budget": {
                    "formats": [{"int4": {"group_size": 64}}],
                    "embedding_formats": ["int8"],
                    "rounding": "nearest",
                }
            }
        ],
    }
)


def make_demo(models: Path) -> Path:
    """Make what is missing of SmolLM2 in our formats; returns the GGUF file that it comes from."""
    for name, recipe in {
        "dense": load_recipe("dense"),
        "int8": load_recipe("int8"),
        "int4": INT4,
    }.items():
        if not (models / name).is_dir():
            source = "demo" if name == "dense" else models / "dense"
            spqlm.compress(source, models / name, recipe=recipe)
    return demo_file()


def make_others(folder: Path, models: Path, source: Path, engines: list[str]) -> dict[str, str]:
    """Make what is missing of the models that engines bring about themselves.

    Args:
        folder: of the environments.
        models: where our formats lie already.
        source: the GGUF file that llama.cpp's are made from.
        engines: names in ENGINES.

    Returns:
        why an engine cannot run, by its name.
    """
    reasons = {}
    for engine in engines:
        environment, name = ENGINES[engine].environment, ENGINES[engine].model
        reason = outcome(folder, environment) if environment else None
        if reason is None and not (models / name).exists():
            reason = _make(python_of(folder, environment), models, source, name)
        if reason is not None:
            reasons[engine] = reason
    return reasons


def _make(python: Path, models: Path, source: Path, name: str) -> str | None:
    partial = models / f"{name}.partial"
    if name == "gptq":
        tokenizer = load_tokenizer(str(models / "dense"))
        if tokenizer is None:
            return "no model: gptqmodel quantises by text, and random weights have no tokenizer"
        windows = models / "windows.safetensors"
        ids = encode(tokenizer, load_text("builtin", "calibration").text, 512)
        save_file({"ids": ids[: 8 * 512].view(8, 512).contiguous()}, windows)
        command = [python, WORKERS / "make_gptq.py", models / "dense", windows, partial]
    else:
        kind = name.removesuffix(".gguf")
        command = [python, WORKERS / "make_gguf.py", source, partial, kind]
    # In the folder of the models: gptqmodel leaves logs where it runs.
    done = subprocess.run(
        [str(part) for part in command],
        env=settings(False),
        cwd=models,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return f"no model: {lines[-1][:160]}"
    partial.rename(models / name)
    return None
