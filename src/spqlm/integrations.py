"""Teaches transformers, peft and TRL our formats, without importing any of them.

None has entry points for formats: somebody must call their functions before a checkpoint is read
or an adapter put on. `import spqlm` does so. Importing them takes seconds that most uses of the
command line have no need for, so where one is not loaded yet, an import hook waits for it.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

# Importing ours registers it with theirs. Every way to read a checkpoint in transformers loads its
# registry of formats first.
OURS = {
    "transformers.quantizers.auto": "spqlm.checkpoint.quantizer",
    "peft": "spqlm.adapters.registration",
    "trl.trainer.utils": "spqlm.adapters.fused_head",
}


class _Hook(MetaPathFinder):
    """Finds their modules as they would be found without this; ours follows once one is loaded."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in OURS:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        specs = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next(filter(None, specs), None)
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def load_and_register(module: ModuleType) -> None:
            load(module)
            importlib.import_module(OURS[fullname])

        spec.loader.exec_module = load_and_register  # type: ignore[method-assign]
        return spec


def register() -> None:
    """Register with each library: now if it is loaded, else when it is."""
    for theirs, ours in OURS.items():
        if theirs in sys.modules:
            importlib.import_module(ours)
    if not any(isinstance(finder, _Hook) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Hook())
