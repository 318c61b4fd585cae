"""Backward passes in bounded memory: activations inside decoder layers are computed twice.

Chen et al., "Training Deep Nets with Sublinear Memory Cost" (arXiv 1604.06174). transformers' own
switch for it works in training mode only, where dropout would change the result.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any

from torch.utils.checkpoint import checkpoint

from spqlm.model.view import ModelView

# Activations that may be held, or as much as this share of the weights; beyond, the time of another
# forward pass is spent instead.
HELD_BYTES = 1 << 30
HELD_SHARE = 0.5


# Set in the thread that computes a layer again.
_recomputing: ContextVar[bool] = ContextVar("recomputing", default=False)


def once(hook: Callable[..., None]) -> Callable[..., None]:
    """A forward hook that does not run when a layer is computed again."""
    return lambda *arguments: None if _recomputing.get() else hook(*arguments)


@contextmanager
def _again() -> Iterator[None]:
    token = _recomputing.set(True)
    try:
        yield
    finally:
        _recomputing.reset(token)


def held_bytes(view: ModelView, tokens: int) -> int:
    """About what a backward pass holds: all that enters and leaves the decoder's linear layers."""
    leaves = view.leaves(("attention", "mlp"))
    widths = sum(leaf.module.in_features + leaf.module.out_features for leaf in leaves)
    return tokens * widths * view.model.dtype.itemsize


def most_held(view: ModelView) -> int:
    """Bytes of activations that a backward pass through the model may hold."""
    modules = [leaf.module for leaf in view.leaves(("attention", "mlp"))]
    entries = sum(module.in_features * module.out_features for module in modules)
    return max(HELD_BYTES, int(HELD_SHARE * entries * view.model.dtype.itemsize))


@contextmanager
def bounded_activations(view: ModelView, tokens: int) -> Iterator[None]:
    """Where a backward pass would hold much, hold only what enters each decoder layer.

    Gradients are the same to the last bit, as long as the model computes the same thing twice: in
    eval mode. Forward hooks inside the layers run twice, but for those made with `once`.

    Args:
        view: the model; its decoder layers are as they were afterwards.
        tokens: in one backward pass.
    """
    layers: list[Any] = []
    if held_bytes(view, tokens) > most_held(view):
        layers = [view.module(layer.name) for layer in view.layers]
    own = [layer.__dict__.get("forward") for layer in layers]
    try:
        for layer in layers:
            layer.forward = partial(
                checkpoint,
                layer.forward,
                use_reentrant=False,
                preserve_rng_state=False,
                context_fn=lambda: (nullcontext(), _again()),
            )
        yield
    finally:
        for layer, forward in zip(layers, own, strict=True):
            layer.__dict__.pop("forward", None)
            if forward is not None:
                layer.forward = forward
