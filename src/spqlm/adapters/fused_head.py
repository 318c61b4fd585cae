"""TRL's trainers compute the loss from the head's `weight`: a compressed one is shown as floats.

They patch a model's forward pass so that it takes `fused_lm_head=True`, and then multiply by
`get_output_embeddings().weight` a chunk of tokens at a time. While they do, the head is floats.
Importing this extends the function that patches models, in each module of TRL that has it.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from spqlm.adapters.base import Linear, as_dense

PATCHES = "add_fused_lm_head"


def shown(patch: Callable[..., Any]) -> Callable[..., Any]:
    """TRL's function that patches a model, for compressed heads too."""

    @wraps(patch)
    def add_fused_lm_head(model: Any, *args: Any, **options: Any) -> Any:
        found = patch(model, *args, **options)
        fused = model.forward

        @wraps(fused)
        def forward(*inputs: Any, fused_lm_head: bool = False, **named: Any) -> Any:
            if not fused_lm_head:
                return fused(*inputs, **named)
            with _dense_head(model):
                return fused(*inputs, fused_lm_head=True, **named)

        model.forward = forward
        return found

    return add_fused_lm_head


@contextmanager
def _dense_head(model: nn.Module) -> Iterator[None]:
    """While a formula reads the head's weight: it has one, of floats that are not trained."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    layer = head.get_base_layer() if isinstance(head, BaseTunerLayer) else head
    if not isinstance(layer, Linear):
        yield
        return
    dense = as_dense(layer)
    model.__dict__["get_output_embeddings"] = lambda: dense
    try:
        yield
    finally:
        del model.__dict__["get_output_embeddings"]


def _register() -> None:
    extended: dict[Any, Any] = {}
    for name, module in list(sys.modules.items()):
        if name.startswith("trl.") and PATCHES in vars(module):
            patch = vars(module)[PATCHES]
            setattr(module, PATCHES, extended.setdefault(patch, shown(patch)))


_register()
