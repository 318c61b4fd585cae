"""SPQ: make causal language models smaller, and say what it cost.

Importing this package registers the checkpoint format with transformers, so that
`AutoModelForCausalLM.from_pretrained` reads compressed checkpoints, and with peft, so that adapters
train on them.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from spqlm.errors import CheckpointError, SpqError
from spqlm.integrations import register

if TYPE_CHECKING:
    __version__: str
    from spqlm.allocation.limits import Limits
    from spqlm.conversion import Exported, export
    from spqlm.estimating import estimate
    from spqlm.loading import load
    from spqlm.measuring import evaluate
    from spqlm.pipeline import CompressionResult, compress, plan
    from spqlm.recipe import Recipe, load_recipe

__all__ = [
    "CheckpointError",
    "CompressionResult",
    "Exported",
    "Limits",
    "Recipe",
    "SpqError",
    "compress",
    "estimate",
    "evaluate",
    "export",
    "load",
    "load_recipe",
    "plan",
]

# Imported when they are asked for: PyTorch and transformers take seconds to import.
_HOMES = {
    "CompressionResult": "spqlm.pipeline",
    "Exported": "spqlm.conversion",
    "Limits": "spqlm.allocation.limits",
    "Recipe": "spqlm.recipe",
    "compress": "spqlm.pipeline",
    "estimate": "spqlm.estimating",
    "evaluate": "spqlm.measuring",
    "export": "spqlm.conversion",
    "load": "spqlm.loading",
    "load_recipe": "spqlm.recipe",
    "plan": "spqlm.pipeline",
}

register()

if not TYPE_CHECKING:  # so that a type checker finds names that do not exist

    def __getattr__(name: str) -> object:
        if name == "__version__":  # pyproject.toml states it, and only that
            found = import_module("spqlm.versions").versions()["spqlm"]
        elif name in _HOMES:
            found = getattr(import_module(_HOMES[name]), name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = found
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
