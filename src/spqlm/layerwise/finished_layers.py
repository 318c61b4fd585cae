"""Compressed layers on disk, so that a run that was stopped goes on after the last one."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from spqlm import ranks
from spqlm.checkpoint.headers import check_tensors, read_header
from spqlm.checkpoint.spec import WeightSpec, parse_spec, spec_of
from spqlm.checkpoint.structure import check_values
from spqlm.kept_files import keep, read_tensors, recall
from spqlm.model.mapped import is_bounded, mark, release
from spqlm.model.view import ModelView

logger = logging.getLogger(__name__)


class FinishedLayers:
    """The layers that one run has compressed so far: a `Sink`, for other modules too.

    Inside `mapped.bounded` the model has them from their files, and memory is not filled with them.
    What cannot be read is done anew, and what cannot be written is done without: both are logged.
    """

    def __init__(self, view: ModelView, directory: Path | None) -> None:
        """In the directory of the run, see `cache.RunState`; None keeps nothing."""
        self._view = view
        self._directory = directory

    def find(self, name: str) -> Callable[[], None] | None:
        """What puts the compressed modules of the layer in place, if an earlier run finished it."""
        if self._directory is None:
            return None
        file = self._directory / f"{name}.safetensors"
        if not all(ranks.together(file.is_file())):
            return None
        modules = recall(file, lambda *contents: self._modules(file, *contents))
        if modules is None:
            return None
        logger.info("%s: finished by an earlier run", name)
        return lambda: self._put(modules)

    def replace(self, name: str, made: Callable[[], nn.Module]) -> None:
        """Replace a module by what an earlier run made of it, or by what is made and kept now."""
        put_back = self.find(name)
        if put_back is not None:
            put_back()
            return
        self._view.replace(name, made())
        self.keep(name, [name])

    def _put(self, modules: nn.ModuleDict) -> None:
        for plain, module in modules.items():
            name = plain.replace("/", ".")
            self._view.replace(name, module.to(_device_of(self._view.module(name))))

    def _modules(
        self, file: Path, tensors: dict[str, Tensor], metadata: dict[str, str]
    ) -> nn.ModuleDict:
        stated, trains = json.loads(metadata["specs"]), set(json.loads(metadata["trains"]))
        modules = nn.ModuleDict()
        for name in sorted(stated):  # a low-rank layer before its factors
            spec = parse_spec(name, stated[name])
            if not isinstance(spec, WeightSpec):
                continue
            module = spec.build(self._view.model.dtype)
            parent, _, own = name.rpartition(".")
            if _plain(parent) in modules:
                modules[_plain(parent)].set_submodule(own, module)
            else:
                modules[_plain(name)] = module
        check_tensors(modules.state_dict(), read_header(file), set())
        modules.load_state_dict(tensors, assign=is_bounded())
        for name, parameter in modules.named_parameters():
            parameter.requires_grad_(name in trains)
        mark(modules)
        check_values(modules)
        release(modules.parameters())
        return modules

    def keep(self, name: str, changed: list[str]) -> None:
        """Write the modules called `changed`; nothing if one has no spec, as a dense embedding."""
        if self._directory is None:
            return
        modules = nn.ModuleDict({_plain(full): self._view.module(full) for full in changed})
        specs = {}
        for full in changed:
            for inner, part in self._view.module(full).named_modules(prefix=full):
                spec = spec_of(part)
                if spec is not None:
                    specs[inner] = spec.dump()
        if not specs.keys() >= set(changed):
            return
        trains = [name for name, held in modules.named_parameters() if held.requires_grad]
        metadata = {"specs": json.dumps(specs), "trains": json.dumps(trains)}
        file = self._directory / f"{name}.safetensors"
        if keep(file, modules.state_dict(), metadata) and is_bounded():
            self._put(self._modules(file, *read_tensors(file)))


def _device_of(module: nn.Module) -> torch.device:
    """Where a module is, which need not be where the model computes: see `onloading`."""
    return next(tensor.device for tensor in (*module.parameters(), *module.buffers()))


def _plain(name: str) -> str:
    """A ModuleDict takes no dots."""
    return name.replace(".", "/")
