"""A training run on disk: what it would take to go on from there, bit for bit."""

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spqlm.kept_files import keep, recall

logger = logging.getLogger(__name__)

# Of the time of training, at most this goes into writing.
SHARE = 0.01
# Bytes per second that the first write is reckoned with; the others by what the last one took.
WRITE_RATE = 1e9


class TrainingState:
    """The latest state of a training run.

    Tensors are called `parameter/kind`: `value`, the kinds of Adam's state, and whatever else a
    stage trains by. What cannot be read is trained anew, and what cannot be written is done
    without: both are logged.
    """

    def __init__(self, directory: Path | None, parameters: Mapping[str, Tensor]) -> None:
        """Start the clock.

        Args:
            directory: of the run, see `cache.RunState`; None keeps nothing.
            parameters: what is trained, by name.
        """
        self._file = None if directory is None else directory / "training.safetensors"
        self._parameters = parameters
        # A value and two moments, in float32.
        size = 3 * 4 * sum(parameter.numel() for parameter in parameters.values())
        self._cost = size / WRITE_RATE
        self._written = time.perf_counter()

    def due(self) -> bool:
        """Whether the time since the last write allows for another one."""
        if self._file is None:
            return False
        return self._cost <= SHARE * (time.perf_counter() - self._written)

    def keep(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Write the state in place of the one before.

        Args:
            tensors: by `parameter/kind`.
            values: `step`, and whatever else JSON can hold; floats stay exact.
        """
        if self._file is None:
            return
        started = time.perf_counter()
        held = {name: tensor.detach() for name, tensor in tensors.items()}
        keep(self._file, held, {"values": json.dumps(values)})
        self._written = time.perf_counter()
        self._cost = self._written - started

    def read(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors, on the CPU, and values that an earlier run kept, `step` among them; else None.

        Other parameters than are trained, or another shape of one, are damage too.
        """
        found = None if self._file is None else recall(self._file, self._checked)
        if found is not None:
            step = found[1]["step"]
            logger.info("training goes on after step %d of an earlier run", step)
        return found

    def _checked(
        self, tensors: dict[str, Tensor], metadata: Mapping[str, str]
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        values = json.loads(metadata["values"])
        values["step"] = int(values["step"])
        held = {name.rpartition("/")[0] for name in tensors}
        if held != set(self._parameters):
            raise ValueError("it holds other parameters than are trained")
        for name, tensor in tensors.items():
            parameter, _, kind = name.rpartition("/")
            expected = () if kind == "step" else tuple(self._parameters[parameter].shape)
            if tuple(tensor.shape) != expected:
                raise ValueError(f"{name!r} has shape {list(tensor.shape)}, not {list(expected)}")
        return tensors, values


def adam_state(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Values, and Adam's moments and steps where there are any, by `parameter/kind`; no copies."""
    found = {}
    for name, parameter in parameters.items():
        found[f"{name}/value"] = parameter
        for kind, tensor in optimizer.state.get(parameter, {}).items():
            found[f"{name}/{kind}"] = tensor
    return found


@torch.no_grad()
def load_adam_state(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
) -> None:
    """Take up what `adam_state` gave.

    Raises:
        KeyError: a parameter is missing.
    """
    for name, parameter in parameters.items():
        parameter.copy_(tensors[f"{name}/value"])
        kinds = [kind for kind in ("exp_avg", "exp_avg_sq") if f"{name}/{kind}" in tensors]
        if kinds:
            state = {kind: tensors[f"{name}/{kind}"].to(parameter.device) for kind in kinds}
            # A fused optimiser counts where the parameter is, the others on the CPU.
            step = tensors[f"{name}/step"]
            fused = optimizer.defaults.get("fused")
            state["step"] = step.to(parameter.device) if fused else step
            optimizer.state[parameter] = state
