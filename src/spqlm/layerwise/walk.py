"""The decoder one layer at a time, over calibration windows, in the memory of one layer."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from spqlm.layerwise.arguments import STATES, layer_calls
from spqlm.model.experts import routed_rows
from spqlm.model.onloading import layers_unused, onloaded
from spqlm.model.view import LayerView, ModelView

# Windows that go through a layer together.
CHUNK = 4

# Some of the tokens of all windows, by their place in [windows * context]: int64 [n] if a tensor.
Tokens = slice | Tensor
# Called with the name of a projection, the tokens that enter it and their rows, [tokens, in].
# Projections that read the same tensor get the same rows.
Observe = Callable[[str, Tokens, Tensor], None]


class Reached(Exception):
    """The layer was reached; nothing after it needs to run."""


class Walk:
    """Hidden states of all windows at one layer of a decoder.

    Attributes:
        states: what enters the next layer, [windows, context, hidden], in the model's dtype.
    """

    def __init__(self, view: ModelView, windows: Tensor) -> None:
        """Bring every window to the first layer.

        Args:
            view: the model; layers may be changed while walking, up to the one walked to.
            windows: token ids, int64 [windows, context], without padding.

        Raises:
            NotWalkable: what enters a layer does not say what leaves it.
        """
        self._view = view
        ids = windows.to(view.model.device)
        with evaluating(view.model):
            self._calls = layer_calls(view, ids)
            self.states = torch.cat([self.first_inputs(chunk) for chunk in ids.split(CHUNK)])

    def first_inputs(self, ids: Tensor) -> Tensor:
        """What enters the first layer, [n, context] -> [n, context, hidden]; differentiable."""
        found: list[Tensor] = []

        def stop(_: nn.Module, arguments: tuple[Tensor, ...], named: dict[str, Any]) -> None:
            found.append(arguments[0] if arguments else named[STATES])
            raise Reached

        first = self._view.module(self._view.layers[0].name)
        handle = first.register_forward_pre_hook(stop, with_kwargs=True)
        try:
            with layers_unused():
                self._view.decoder(input_ids=ids, use_cache=False)
        except Reached:
            pass
        finally:
            handle.remove()
        return found[0]

    @property
    def stepwise(self) -> bool:
        """Whether states at the layer are at hand, and the layer can be run on them by itself."""
        return True

    def run(
        self, layer: LayerView, states: Tensor, parameters: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """One layer on some windows, [windows, context, hidden] -> the same; differentiable.

        Args:
            layer: to run.
            states: what enters it.
            parameters: that it has in place of its own, by their names in the layer.
        """
        module = self._view.module(layer.name)
        if not parameters:
            return self._calls[layer.name].run(module, states)

        def other(*positional: Any, **named: Any) -> Any:
            return functional_call(module, dict(parameters), positional, named)

        return self._calls[layer.name].run(other, states)

    def gives_tuple(self, layer: LayerView, states: Tensor) -> bool:
        """Whether the layer gives more than hidden states, found out on some windows."""
        output = self._calls[layer.name].output(self._view.module(layer.name), states)
        return isinstance(output, tuple)

    def observe(self, layer: LayerView, on_rows: Observe) -> None:
        """Run the layer as it is now, without moving on; else as `advance`."""
        self._run_all(layer, on_rows, keep=False)

    def advance(self, layer: LayerView, on_rows: Observe | None = None) -> None:
        """Run the layer as it is now on all windows and move on to the next.

        Args:
            layer: the next one.
            on_rows: if given, called for each leaf with what enters it, some tokens at a time.
        """
        self._run_all(layer, on_rows, keep=True)

    def observe_beside(
        self, dense: "Walk", layer: LayerView, on_rows: Observe, on_dense: Observe
    ) -> None:
        """`observe`, while the walk through the dense model advances by the same layer.

        Some windows at a time: `on_dense` is called for them, then `on_rows`.

        Args:
            dense: at the same layer.
            layer: as it was.
            on_rows: called with what enters its leaves behind the layers as they are.
            on_dense: called with what enters them behind the dense ones.
        """
        for windows in slices(len(self.states)):
            dense._run_some(layer, on_dense, [windows], keep=True)
            self._run_some(layer, on_rows, [windows], keep=False)

    def _run_all(self, layer: LayerView, on_rows: Observe | None, *, keep: bool) -> None:
        self._run_some(layer, on_rows, slices(len(self.states)), keep=keep)

    @torch.no_grad()
    def _run_some(
        self, layer: LayerView, on_rows: Observe | None, parts: list[slice], *, keep: bool
    ) -> None:
        context = self.states.shape[1]
        module = self._view.module(layer.name)
        with onloaded(module), evaluating(self._view.model), hooked(layer, on_rows) as now:
            for windows in parts:
                now.tokens = slice(windows.start * context, windows.stop * context)
                output = self.run(layer, self.states[windows])
                if keep:
                    self.states[windows] = output


class _Now:
    """The tokens that are in the layer, and what entered the projection seen last."""

    tokens = slice(0, 0)
    entered: Tensor | None = None
    rows: Tensor

    def reached(self, routed: Tensor | None) -> Tokens:
        """Those of the tokens that are routed to an expert; all of them if None."""
        return self.tokens if routed is None else self.tokens.start + routed

    def rows_of(self, entered: Tensor) -> Tensor:
        if entered is not self.entered:
            self.entered, self.rows = entered, entered.flatten(0, -2)
        return self.rows


@contextmanager
def hooked(layer: LayerView, on_rows: Observe | None) -> Iterator[_Now]:
    """Inside, what enters the leaves of a layer is reported."""
    now = _Now()

    def hook(name: str) -> Callable[..., None]:
        def on_forward(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if on_rows is not None:
                on_rows(name, now.reached(routed_rows()), now.rows_of(inputs[0]))

        return on_forward

    watched = layer.leaves if on_rows is not None else []
    handles = [named.module.register_forward_pre_hook(hook(named.name)) for named in watched]
    try:
        yield now
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, a model is in eval mode and keeps no gradients."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def slices(count: int) -> list[slice]:
    """Windows that go through a layer together, all of so many."""
    return [slice(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
