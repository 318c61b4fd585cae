"""The decoder one layer at a time, over calibration windows, in the memory of one layer."""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from spqlm.kernels.gram import add_gram
from spqlm.model.view import LayerView, ModelView, Named
from spqlm.numerics.gram import complete_gram
from spqlm.progress import track

# Windows that go through a layer together.
CHUNK = 4

Observe = Callable[[str, slice, Tensor], None]


class _Reached(Exception):
    """The first layer was reached; nothing after it needs to run."""


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
        """
        self._view = view
        self._arguments: dict[str, dict[str, Any]] = {}
        ids = windows.to(view.model.device)
        with _evaluating(view.model):
            self._capture_arguments(ids[:1])
            self.states = torch.cat([self._first_inputs(chunk) for chunk in ids.split(CHUNK)])

    def _capture_arguments(self, ids: Tensor) -> None:
        """What the model passes to each layer besides the states: the same for every window."""

        def hook(name: str) -> Callable[..., None]:
            def keep(_: nn.Module, __: tuple[Any, ...], arguments: dict[str, Any]) -> None:
                kept = {key: value for key, value in arguments.items() if key != "hidden_states"}
                self._arguments[name] = kept

            return keep

        handles = [
            self._view.module(layer.name).register_forward_pre_hook(
                hook(layer.name), with_kwargs=True
            )
            for layer in self._view.layers
        ]
        try:
            self._view.model.get_decoder()(input_ids=ids, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()

    def _first_inputs(self, ids: Tensor) -> Tensor:
        found: list[Tensor] = []

        def stop(_: nn.Module, arguments: tuple[Tensor, ...], named: dict[str, Any]) -> None:
            found.append(arguments[0] if arguments else named["hidden_states"])
            raise _Reached

        first = self._view.module(self._view.layers[0].name)
        handle = first.register_forward_pre_hook(stop, with_kwargs=True)
        try:
            self._view.model.get_decoder()(input_ids=ids, use_cache=False)
        except _Reached:
            pass
        finally:
            handle.remove()
        return found[0]

    def run(self, layer: LayerView, states: Tensor) -> Tensor:
        """One layer on some windows, [windows, context, hidden] -> the same; differentiable."""
        output = self._view.module(layer.name)(states, **self._arguments[layer.name])
        result: Tensor = output[0] if isinstance(output, tuple) else output
        return result

    def observe(self, layer: LayerView, on_input: Observe) -> None:
        """Run the layer as it is now, without moving on; else as `advance`."""
        self._run_all(layer, on_input, keep=False)

    def advance(self, layer: LayerView, on_input: Observe | None = None) -> None:
        """Run the layer as it is now on all windows and move on to the next.

        Args:
            layer: the next one.
            on_input: if given, called with the name of each leaf, the windows as a slice, and what
                enters the layer, [windows, context, in].
        """
        self._run_all(layer, on_input, keep=True)

    @torch.no_grad()
    def _run_all(self, layer: LayerView, on_input: Observe | None, *, keep: bool) -> None:
        with _evaluating(self._view.model), _hooked(layer, on_input) as now:
            for now.windows in _slices(len(self.states)):
                output = self.run(layer, self.states[now.windows])
                if keep:
                    self.states[now.windows] = output


@torch.no_grad()
def replace_layer_by_layer(
    view: ModelView,
    windows: Tensor,
    names: Collection[str],
    made: Callable[[Named, Tensor], nn.Module],
    description: str,
) -> None:
    """Replace linear layers by what enters them behind the ones that were replaced before.

    The projections of one decoder layer all see what its own dense ones give, as in SparseGPT.

    Args:
        view: the model; changed in place.
        windows: token ids, int64 [windows, context].
        names: of the linear layers.
        made: from a linear layer and its E[x xᵀ], float32 [in, in], what takes its place.
        description: of the work, for the progress bar.
    """
    walk = Walk(view, windows)
    for layer in track(view.layers, description):
        wanted = [named for named in layer.leaves if named.name in names]
        moments = _Moments(named.name for named in wanted)
        walk.observe(layer, moments.add)
        for named in wanted:
            view.replace(named.name, made(named, moments.mean(named.name)))
        walk.advance(layer)


class _Moments:
    """E[x xᵀ] of what enters linear layers; those that read the same tensor share one sum."""

    def __init__(self, names: Iterable[str]) -> None:
        self._wanted = set(names)
        self._owners: dict[str, str] = {}
        self._sums: dict[str, Tensor] = {}
        self._rows: dict[str, int] = {}
        self._last: tuple[Tensor | None, str] = (None, "")

    def add(self, name: str, _: slice, x: Tensor) -> None:
        """Count some windows, as an `Observe`."""
        if name not in self._wanted:
            return
        tensor, owner = self._last
        owner = self._owners.setdefault(name, owner if x is tensor else name)
        self._last = x, owner
        if owner != name:
            return
        rows = x.flatten(0, -2)
        if name not in self._sums:
            self._sums[name] = torch.zeros(rows.shape[1], rows.shape[1], device=x.device)
            self._rows[name] = 0
        add_gram(self._sums[name], rows, torch.ones(len(rows), device=x.device))
        self._rows[name] += len(rows)

    def mean(self, name: str) -> Tensor:
        """Float32 [in, in]."""
        owner = self._owners[name]
        return complete_gram(self._sums[owner]) / self._rows[owner]


class _Now:
    windows = slice(0, 0)


@contextmanager
def _hooked(layer: LayerView, on_input: Observe | None) -> Iterator[_Now]:
    now = _Now()

    def hook(name: str) -> Callable[..., None]:
        def on_forward(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if on_input is not None:
                on_input(name, now.windows, inputs[0])

        return on_forward

    watched = layer.leaves if on_input is not None else []
    handles = [named.module.register_forward_pre_hook(hook(named.name)) for named in watched]
    try:
        yield now
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def _slices(count: int) -> list[slice]:
    return [slice(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
