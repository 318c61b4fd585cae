"""Decoder layers on a device only while they run, so that it holds one of them at a time.

The model stays in the computer's memory, or in its files: see `mapped`. Embedding, head, norms and
all else that lies outside of the layers stays on the device.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from spqlm.model.view import ModelView
from spqlm.numerics.identity import state_of


@contextmanager
def onloading(view: ModelView, device: torch.device) -> Iterator[None]:
    """Inside, the model computes on a device, and each decoder layer is there while it runs.

    For passes forward. A backward pass needs its layer inside `onloaded`.

    Args:
        view: a model on the CPU; modules may be replaced inside, and all are on the CPU behind it.
        device: that the rest of the model fits on, with one layer and what is computed.
    """
    layers = [view.module(layer.name) for layer in view.layers]
    inside = {module for layer in layers for module in layer.modules()}
    visits = _Visits(device)
    with ExitStack() as stack:
        for layer in layers:
            # First of all hooks, on the way in and on the way out.
            before = layer.register_forward_pre_hook(visits.on_enter, prepend=True)
            behind = layer.register_forward_hook(visits.on_leave, prepend=True, always_call=True)
            stack.callback(before.remove)
            stack.callback(behind.remove)
        visits.bring(view.model, [m for m in view.model.modules() if m not in inside])
        stack.callback(visits.take_back, view.model)
        token = _now.set(visits)
        stack.callback(_now.reset, token)
        yield


@contextmanager
def onloaded(module: nn.Module) -> Iterator[None]:
    """Inside, a decoder layer stays on the device of `onloading`; outside of that, nothing."""
    visits = _now.get()
    if visits is None:
        yield
        return
    visits.enter(module)
    try:
        yield
    finally:
        visits.leave(module)


@contextmanager
def layers_unused() -> Iterator[None]:
    """Inside, layers are called and do not compute, so they stay where they are."""
    visits = _now.get()
    if visits is None:
        yield
        return
    visits.unused = True
    try:
        yield
    finally:
        visits.unused = False


class _Place(NamedTuple):
    """Where a module has one of its tensors, and both of these: at home and on the device."""

    held: dict[str, Any]
    name: str
    home: Tensor
    here: Tensor
    state: tuple[object, ...]


class _Visits:
    """Which modules are on the device, and where their tensors were.

    Attributes:
        unused: whether layers that are called are left where they are.
    """

    unused = False

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._depth: Counter[nn.Module] = Counter()
        self._places: dict[nn.Module, list[_Place]] = {}

    def on_enter(self, module: nn.Module, _: object) -> None:
        if not self.unused:
            self.enter(module)

    def on_leave(self, module: nn.Module, *_: object) -> None:
        if not self.unused:
            self.leave(module)

    def enter(self, module: nn.Module) -> None:
        self._depth[module] += 1
        if self._depth[module] == 1:
            self.bring(module, module.modules())

    def leave(self, module: nn.Module) -> None:
        self._depth[module] -= 1
        if not self._depth[module]:
            self.take_back(module)

    def bring(self, owner: nn.Module, modules: Iterable[nn.Module]) -> None:
        """Give modules of an owner copies of their tensors; what is tied stays so."""
        copies: dict[int, Tensor] = {}
        places = self._places[owner] = []
        for held, name, home in _tensors(modules):
            if id(home) not in copies:
                copies[id(home)] = self._copied(home)
            here = held[name] = copies[id(home)]
            places.append(_Place(held, name, home, here, state_of(here)))

    def _copied(self, home: Tensor) -> Tensor:
        here = home.detach().to(self._device, copy=True)
        if not isinstance(home, nn.Parameter):
            return here
        return nn.Parameter(here, requires_grad=home.requires_grad)

    def take_back(self, owner: nn.Module) -> None:
        """Give its modules their own tensors back; what is new, or was changed, is moved."""
        for held, name, home, here, state in self._places.pop(owner):
            if state_of(here) != state:
                home.data = here.data.to(home.device)
            if held.get(name) is here:
                held[name] = home
        owner.to("cpu")


_now: ContextVar[_Visits | None] = ContextVar("visits", default=None)


def _tensors(modules: Iterable[nn.Module]) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
    """Where modules have parameters and buffers, their names there, and they themselves."""
    for module in modules:
        places: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for held in places:
            yield from ((held, name, found) for name, found in held.items() if found is not None)
