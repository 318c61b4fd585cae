"""Teaches transformers our format, without importing transformers.

transformers has no entry points for formats: somebody must call its functions before a checkpoint
is read. `import spqlm` does so, and importing transformers takes seconds that most uses of the
command line have no need for. So where transformers' registry of formats is not loaded yet, an
import hook waits for it. Every way to read a checkpoint loads that registry first.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

REGISTRY = "transformers.quantizers.auto"
QUANTIZER = "spqlm.checkpoint.quantizer"


class _Hook(MetaPathFinder):
    """Finds the registry as it would be found without this, and registers once it is loaded."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != REGISTRY:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        specs = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next(filter(None, specs), None)
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def load_and_register(module: ModuleType) -> None:
            load(module)
            importlib.import_module(QUANTIZER)

        spec.loader.exec_module = load_and_register  # type: ignore[method-assign]
        return spec


def register() -> None:
    """Register the format with transformers: now if its registry is loaded, else when it is."""
    if REGISTRY in sys.modules:
        importlib.import_module(QUANTIZER)
    elif not any(isinstance(finder, _Hook) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Hook())
