"""Names that arguments take, for help and completion, which must not wait for PyTorch.

The names stand in the modules that define them, too. A test holds these lists to those.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

import spqlm
from spqlm.registry import plugins

PROTOCOLS = ("windows-1024", "windows-2048", "sliding-1024")
DEFAULT_PROTOCOL = PROTOCOLS[0]
TEXTS = ("builtin", "wikitext2", "wikitext2_valid", "c4")
BENCHMARKS = (
    *("arc_easy", "arc_challenge", "piqa", "hellaswag", "winogrande", "openbookqa"),
    *("truthfulqa", "gsm8k"),
)
FEW_SHOT_SEED = 1234
METHODS = (
    *("dense", "int8", "paper", "svd", "svd-llm", "prune", "int4", "gptq", "wanda", "sparsegpt"),
    *("sparsegpt-int8", "sparsegpt-2:4", "sparsegpt-2:4-int8", "gqsa", "sparse"),
    *("ensemble-no-recover", "ensemble"),
)
DTYPES = ("auto", "float32", "bfloat16", "float16")
Alike = Literal["free", "experts", "fused", "uniform"]
DEVICES = ("cpu", "cuda")
# As a `device_map` of transformers.
SPREAD = "auto"

Complete = Callable[[str], list[str]]


def recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(file.stem for file in Path(*spqlm.__path__).glob("recipes/*.yaml"))


def targets() -> list[str]:
    """What a checkpoint can be exported as; `native` is what it is."""
    found = plugins([str(Path(*spqlm.__path__) / "targets")])
    return [name.replace("_", "-") for name in found if name != "native"]


def one_of(names: Iterable[str]) -> Complete:
    """Completes one name. Where none fits, the shell completes files."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return complete


def listed(names: Iterable[str]) -> Complete:
    """Completes the last of several names separated by commas."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        given = before.split(",")
        fitting = (name for name in names if name.startswith(last) and name not in given)
        return [f"{before}{comma}{name}" for name in fitting]

    return complete


def models(incomplete: str) -> list[str]:
    """Completes `demo`, and directories and GGUF files beside the one that is begun."""
    begun = Path(incomplete)
    folder = begun if incomplete.endswith("/") else begun.parent
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    shown = [path for path in found if not path.name.startswith(".")]
    directories = [f"{path}/" for path in shown if path.is_dir()]
    files = [str(path) for path in shown if path.suffix == ".gguf"]
    return one_of(["demo", *directories, *files])(incomplete)
