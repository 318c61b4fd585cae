"""What a model passes to each decoder layer besides the hidden states."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spqlm.model.view import ModelView

STATES = "hidden_states"


class NotWalkable(Exception):
    """A layer depends on more of the text than the states that enter it; names the layer."""


@dataclass(frozen=True)
class Call:
    """Arguments of a layer, less the states.

    Attributes:
        positional: those behind the states.
        named: the others.
    """

    positional: tuple[Any, ...]
    named: Mapping[str, Any]

    def run(self, layer: Callable[..., Any], states: Tensor) -> Tensor:
        """The layer's states, [windows, context, hidden] -> the same."""
        output = self.output(layer, states)
        result: Tensor = output[0] if isinstance(output, tuple) else output
        return result

    def output(self, layer: Callable[..., Any], states: Tensor) -> Any:
        """All that the layer gives."""
        return layer(states, *self.positional, **self.named)


def layer_calls(view: ModelView, ids: Tensor) -> dict[str, Call]:
    """How each layer is called, by its name: the same for every window.

    Args:
        view: the model.
        ids: windows of token ids, int64 [windows, context]; two are looked at.

    Raises:
        NotWalkable: the calls for two windows differ.
    """
    first = _calls(view, ids[:1])
    if len(ids) > 1:
        other = _calls(view, ids[1:2])
        for name, call in first.items():
            if not _alike(call, other[name]):
                raise NotWalkable(name)
    return first


def _calls(view: ModelView, ids: Tensor) -> dict[str, Call]:
    found: dict[str, Call] = {}

    def hook(name: str) -> Any:
        def keep(_: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
            others = {key: value for key, value in named.items() if key != STATES}
            found[name] = Call(positional if STATES in named else positional[1:], others)

        return keep

    handles = [
        view.module(layer.name).register_forward_pre_hook(hook(layer.name), with_kwargs=True)
        for layer in view.layers
    ]
    try:
        view.decoder(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, Call):
        return _alike((one.positional, one.named), (other.positional, other.named))
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_alike(one[key], other[key]) for key in one)
    if isinstance(one, Sequence) and not isinstance(one, str):
        pairs = zip(one, other, strict=False)
        return len(one) == len(other) and all(_alike(*pair) for pair in pairs)
    return type(one) is type(other) and (not isinstance(one, str | int | float) or one == other)
