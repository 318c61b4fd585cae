"""Compressed layers on disk, so that a run that was stopped goes on after the last one."""

import json
import logging
import shutil

from safetensors import SafetensorError, safe_open
from torch import nn

from spqlm.cache import cache_directory, write_tensors
from spqlm.checkpoint.headers import check_tensors, read_header
from spqlm.checkpoint.spec import WeightSpec, parse_spec, spec_of
from spqlm.errors import CheckpointError
from spqlm.model.view import LayerView, ModelView

logger = logging.getLogger(__name__)


class FinishedLayers:
    """The layers that one run has compressed so far.

    What cannot be read is done anew, and what cannot be written is done without: both are logged.
    """

    def __init__(self, view: ModelView, key: str) -> None:
        """For the run that `key` stands for; see `cache.work_key`."""
        self._view = view
        self._directory = cache_directory() / f"layers-{key}"

    def restore(self, layer: LayerView) -> bool:
        """Put the layer's compressed modules in place, if an earlier run finished it."""
        file = self._directory / f"{layer.name}.safetensors"
        if not file.is_file():
            return False
        try:
            with safe_open(file, "pt") as opened:
                stated = json.loads((opened.metadata() or {})["specs"])
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}
            dtype = self._view.model.dtype
            specs = {name: parse_spec(name, entry) for name, entry in stated.items()}
            built = {
                _plain(name): spec.build(dtype)
                for name, spec in specs.items()
                if isinstance(spec, WeightSpec)
            }
            modules = nn.ModuleDict(built)
            check_tensors(modules.state_dict(), read_header(file), set())
            modules.load_state_dict(tensors)
        except (OSError, SafetensorError, ValueError, KeyError, CheckpointError) as error:
            logger.warning("%s is compressed anew, %s cannot be read: %s", layer.name, file, error)
            return False
        for name in specs:
            module = modules[_plain(name)].to(self._view.model.device)
            self._view.replace(name, module.requires_grad_(False))
        logger.info("%s: finished by an earlier run", layer.name)
        return True

    def keep(self, layer: LayerView, names: list[str]) -> None:
        """Write the modules called `names`; all are of the layer and have specs."""
        modules = nn.ModuleDict({_plain(name): self._view.module(name) for name in names})
        specs = {name: spec_of(self._view.module(name)) for name in names}
        dumped = {name: spec.dump() for name, spec in specs.items() if spec is not None}
        file = self._directory / f"{layer.name}.safetensors"
        try:
            write_tensors(file, modules.state_dict(), {"specs": json.dumps(dumped)})
        except (OSError, SafetensorError) as error:
            logger.warning("%s was not kept for a later run: %s", layer.name, error)

    def forget(self) -> None:
        """The run is through."""
        shutil.rmtree(self._directory, ignore_errors=True)


def _plain(name: str) -> str:
    """A ModuleDict takes no dots."""
    return name.replace(".", "/")
