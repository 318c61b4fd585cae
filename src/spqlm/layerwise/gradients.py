"""Gradients of a model that is larger than memory: one layer at a time, forward and backward.

All windows go through a layer before the next one is looked at, and what enters each layer is kept
on disk. Then the layers come again from the last to the first: each is computed once more, and
hands the gradient at its output on to its input. The numbers are those of a pass through the whole
model, to the last bit, and every layer is read from disk twice, however many windows there are.
"""

import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from spqlm.calibration.sensitivity import Observer, check, whole_model
from spqlm.errors import SpqError
from spqlm.kept_files import recall, write_tensors
from spqlm.layerwise.arguments import NotWalkable
from spqlm.layerwise.walk import Walk
from spqlm.model.mapped import release, trim
from spqlm.model.onloading import layers_unused, onloaded
from spqlm.model.view import LayerView, ModelView
from spqlm.numerics.objectives import next_token
from spqlm.progress import track

logger = logging.getLogger(__name__)

_BACKWARD, _HEAD = "backward", "head"


class LayerByLayer:
    """`calibration.sensitivity.Passes` in the memory of one layer, where layers can be walked.

    A run that was stopped goes on after the last layer that it finished, forward or backward.
    """

    def __init__(self, directory: Path) -> None:
        """Keep states of windows in a directory of the run, see `cache.RunState`."""
        self._states = _States(directory)

    def __call__(self, view: ModelView, windows: Tensor, observers: Mapping[str, Observer]) -> None:
        """As `Passes`.

        Raises:
            SpqError: the disk is full; what is finished stays there.
        """
        windows = windows.to(view.model.device)
        layers, earlier = view.layers, self._states.read(_BACKWARD)
        try:
            walk = Walk(view, windows)
        except NotWalkable:
            whole_model(view, windows, observers)
            return
        if earlier is None:
            self._forward(view, walk, layers, [*(layer.name for layer in layers), _HEAD])
            left, gradient = len(layers), self._from_the_top(view, walk, windows, observers)
        else:
            left, gradient = _resumed(earlier, observers)
            gradient = gradient.to(windows.device, copy=True)
            self._forward(view, walk, layers, [layer.name for layer in layers[:left]])
        walk.states = gradient[:0]
        for index in track(range(left - 1, -1, -1), "sensitivities, backward"):
            module = view.module(layers[index].name)
            with onloaded(module):
                self._backward(walk, layers[index], gradient, observers)
            release(module.parameters())
            trim()
            self._keep(index, gradient, observers)
            self._states.remove(layers[index].name)
        _from_below(walk, windows, gradient, observers)
        self._states.forget()

    @torch.no_grad()
    def _forward(
        self, view: ModelView, walk: Walk, layers: list[LayerView], names: list[str]
    ) -> None:
        """What enters the layers, and the head behind them, to files of these names."""
        if names and not self._states.has(names[0]):
            self._states.write(names[0], {"states": walk.states})
        reached = 0
        for index, name in enumerate(track(names[1:], "sensitivities, forward")):
            if self._states.has(name):
                continue
            if reached != index:
                walk.states = self._entering(names[index]).to(walk.states.device, copy=True)
            with onloaded(view.module(layers[index].name)):
                for window in range(len(walk.states)):
                    walk.states[window] = walk.run(layers[index], walk.states[window][None])[0]
            self._states.write(name, {"states": walk.states})
            trim()
            reached = index + 1

    def _entering(self, name: str) -> Tensor:
        found = self._states.read(name)
        if found is None:
            raise SpqError(
                f"what enters {name!r} cannot be read from {str(self._states.directory)!r}; run "
                "the same command again, which computes it anew"
            )
        return found["states"]

    def _from_the_top(
        self, view: ModelView, walk: Walk, windows: Tensor, observers: Mapping[str, Observer]
    ) -> Tensor:
        """Through the final norm and the head: gradients at what the last layer gave."""
        entering = self._entering(_HEAD)
        gradient = torch.empty_like(walk.states)
        with torch.no_grad():
            tuples = walk.gives_tuple(view.layers[-1], entering[:1].to(gradient.device))
        for window, ids in enumerate(windows):
            _set(observers, window)
            states = entering[window][None].to(gradient.device, copy=True).requires_grad_()
            with layers_unused(), _without_layers(view, (states,) if tuples else states):
                logits = view.model(input_ids=ids[None], use_cache=False).logits[0]
            logits.backward(next_token(logits, ids)[1])
            gradient[window] = _taken(states)[0]
        # The backward pass read it after the forward pass had given it back.
        release(view.lm_head.module.parameters())
        trim()
        self._keep(len(view.layers), gradient, observers)
        self._states.remove(_HEAD)
        return gradient

    def _backward(
        self, walk: Walk, layer: LayerView, gradient: Tensor, observers: Mapping[str, Observer]
    ) -> None:
        """From the gradient behind a layer to that before it, in place."""
        entering = self._entering(layer.name)
        for window in range(len(gradient)):
            _set(observers, window)
            states = entering[window][None].to(gradient.device, copy=True).requires_grad_()
            walk.run(layer, states).backward(gradient[window][None])
            gradient[window] = _taken(states)[0]
        check(observers, gradient.dtype)

    def _keep(self, layer: int, gradient: Tensor, observers: Mapping[str, Observer]) -> None:
        held = {"layer": torch.tensor(layer), "gradient": gradient}
        for name, observer in observers.items():
            if observer.squares is not None:
                held |= {f"{name}/norms": observer.norms, f"{name}/squares": observer.squares}
            if observer.inputs is not None:
                held[f"{name}/inputs"] = observer.inputs
        self._states.write(_BACKWARD, held)


def _resumed(earlier: dict[str, Tensor], observers: Mapping[str, Observer]) -> tuple[int, Tensor]:
    for name, observer in observers.items():
        if f"{name}/squares" in earlier:
            device = observer.norms.device
            observer.norms = earlier[f"{name}/norms"].clone().to(device)
            observer.squares = earlier[f"{name}/squares"].clone().to(device)
        if f"{name}/inputs" in earlier:
            observer.inputs = earlier[f"{name}/inputs"].clone().to(observer.norms.device)
    layer = int(earlier["layer"])
    logger.info("gradients go on before layer %d, as an earlier run left them", layer)
    return layer, earlier["gradient"]


def _from_below(
    walk: Walk, windows: Tensor, gradient: Tensor, observers: Mapping[str, Observer]
) -> None:
    """From what enters the first layer to the embedding."""
    for window, ids in enumerate(windows):
        _set(observers, window)
        with torch.enable_grad():
            walk.first_inputs(ids[None]).backward(gradient[window][None])


def _set(observers: Mapping[str, Observer], window: int) -> None:
    for observer in observers.values():
        observer.window = window


def _taken(states: Tensor) -> Tensor:
    assert states.grad is not None
    return states.grad


@contextmanager
def _without_layers(view: ModelView, output: Any) -> Iterator[None]:
    """Inside, the decoder's layers compute nothing, and give `output`."""

    def forward(*_: Any, **__: Any) -> Any:
        return output

    layers = [view.module(layer.name) for layer in view.layers]
    own = [layer.__dict__.get("forward") for layer in layers]
    try:
        for layer in layers:
            layer.forward = forward
        yield
    finally:
        for layer, earlier in zip(layers, own, strict=True):
            layer.__dict__.pop("forward", None)
            if earlier is not None:
                layer.forward = earlier


class _States:
    """Tensors of one pass in files."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def _file(self, name: str) -> Path:
        return self.directory / f"{name}.safetensors"

    def write(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        try:
            write_tensors(self._file(name), tensors, {})
        except (OSError, SafetensorError) as error:
            count = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
            raise SpqError(
                f"{count / 1e6:.0f} MB of hidden states cannot be written to "
                f"{str(self.directory)!r} ({error}); make room there and run the same "
                "command again, which goes on from here"
            ) from None

    def read(self, name: str) -> dict[str, Tensor] | None:
        """From an earlier call; None where there is nothing that can be used."""
        found = recall(self._file(name), lambda tensors, _: tensors)
        if found is None:
            self.remove(name)
        return found

    def has(self, name: str) -> bool:
        return self._file(name).is_file()

    def remove(self, name: str) -> None:
        self._file(name).unlink(missing_ok=True)

    def forget(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)
