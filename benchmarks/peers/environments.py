"""Which peers there are, what each needs installed, and where its virtual environment lies."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

TORCH = "torch==2.13.0"


@dataclass(frozen=True)
class Peer:
    """An environment of its own.

    Attributes:
        requirements: what pip installs, all at once.
        imports: the module that must import afterwards.
        without_dependencies: installed last with `--no-deps`.
        environment: variables of the installation, e.g. of a build from source.
    """

    requirements: tuple[str, ...]
    imports: str
    without_dependencies: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


def _without_amx() -> str:
    """Options by which llama.cpp leaves AMX alone: its quantised products crash with it."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file() or "amx_tile" not in cpuinfo.read_text():
        return ""
    flags = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
    return f" '-DCMAKE_C_FLAGS={flags}' '-DCMAKE_CXX_FLAGS={flags}'"


PEERS = {
    "auto-round": Peer((TORCH, "auto-round==0.16.1"), "auto_round"),
    "llm-compressor": Peer((TORCH, "llmcompressor==0.14.*"), "llmcompressor"),
    "torchao": Peer((TORCH, "transformers==5.23.0", "accelerate", "torchao"), "torchao"),
    # Compiled for the machine it runs on, without its vision models and command-line tools.
    "llama.cpp": Peer(
        ("llama-cpp-python==0.3.*",),
        "llama_cpp",
        environment={
            "CMAKE_ARGS": "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF -DLLAMA_BUILD_COMMON=OFF"
            + _without_amx(),
            "CMAKE_BUILD_PARALLEL_LEVEL": "2",
        },
    ),
    "gptq": Peer((TORCH, "transformers", "accelerate", "gptqmodel"), "gptqmodel"),
}


def default_folder() -> Path:
    """`$XDG_CACHE_HOME/spq-peers`, or the same under ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spq-peers"


def python_of(folder: Path, peer: str) -> Path:
    return folder / peer / "bin" / "python"


def outcome(folder: Path, peer: str) -> str | None:
    """None where a peer is installed and imports, else why not, in a few words."""
    record = folder / f"{peer}.json"
    if not record.is_file():
        return "not set up: run benchmarks/peers/setup.py"
    reason: str | None = json.loads(record.read_text())["reason"]
    return reason
