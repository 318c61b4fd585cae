"""The walk through a decoder whose layers cannot be run one by one: the whole of it, each time."""

import functools
import logging
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from spqlm.layerwise.arguments import NotWalkable
from spqlm.layerwise.walk import Observe, Reached, Walk, evaluating, hooked, slices
from spqlm.model.view import LayerView, ModelView

logger = logging.getLogger(__name__)


class WholeModelWalk(Walk):
    """A walk that keeps no states: it runs the model up to the layer that is observed."""

    def __init__(self, view: ModelView, windows: Tensor) -> None:
        """As for `Walk`; nothing runs yet."""
        self._view = view
        self._ids = windows.to(view.model.device)

    @property
    def stepwise(self) -> bool:
        """No."""
        return False

    @torch.no_grad()
    def _run_all(self, layer: LayerView, on_rows: Observe | None, *, keep: bool) -> None:
        if on_rows is None:
            return
        count, context = self._ids.shape

        def stop(*_: Any) -> None:
            raise Reached

        module: nn.Module = self._view.module(layer.name)
        handle = module.register_forward_hook(stop)
        try:
            with evaluating(self._view.model), hooked(layer, on_rows) as now:
                for windows in slices(count):
                    now.tokens = slice(windows.start * context, windows.stop * context)
                    with suppress(Reached):
                        self._view.decoder(input_ids=self._ids[windows], use_cache=False)
        finally:
            handle.remove()


def walk_through(view: ModelView, windows: Tensor) -> Walk:
    """A walk that the model allows, layer by layer if it can be.

    Args:
        view: the model.
        windows: token ids, int64 [windows, context], without padding.
    """
    try:
        return Walk(view, windows)
    except NotWalkable as layer:
        _say(type(view.model).__name__, str(layer))
        return WholeModelWalk(view, windows)


@functools.cache
def _say(kind: str, layer: str) -> None:
    """Once for each model: the walk is begun anew for prices, for shapes and for rounding."""
    logger.warning(
        "%s: %s depends on more than the states that enter it, so the whole model runs for each "
        "layer: this takes longer, and codes are not trained",
        kind,
        layer,
    )
