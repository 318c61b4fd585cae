"""What the tests of walking through a decoder compare with: the model's own forward pass."""

import torch
from tests.helpers import tiny_model
from torch import Tensor

from spqlm.model.view import ModelView

CONTEXT = 24
# A window of 8 within 24 tokens, on the first layer alone.
SLIDING = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}


def random_windows(count: int, context: int = CONTEXT) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, 256, (count, context), generator=generator)


def made(model_type: str, **overrides):
    sliding = SLIDING if model_type == "gemma3_text" else {}
    if model_type == "mistral":
        sliding = {"sliding_window": 8}
    return tiny_model(model_type, **(sliding | overrides))


@torch.no_grad()
def hidden_states(model, windows: Tensor) -> list[Tensor]:
    """What enters each layer, then what leaves the last one, by the model's own forward pass."""
    seen: list[Tensor] = []

    def entering(_, arguments, named):
        seen.append(arguments[0] if arguments else named["hidden_states"])

    def leaving(_, __, output):
        seen.append(output[0] if isinstance(output, tuple) else output)

    layers = [model.get_submodule(layer.name) for layer in ModelView(model).layers]
    hooks = [layer.register_forward_pre_hook(entering, with_kwargs=True) for layer in layers]
    hooks.append(layers[-1].register_forward_hook(leaving))
    model(windows)
    for hook in hooks:
        hook.remove()
    return seen


@torch.no_grad()
def linear_inputs(model, windows: Tensor) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}

    def keep(name):
        def hook(_, arguments):
            seen[name] = arguments[0]

        return hook

    hooks = [
        named.module.register_forward_pre_hook(keep(named.name))
        for layer in ModelView(model).layers
        for named in layer.leaves
    ]
    model(windows)
    for hook in hooks:
        hook.remove()
    return seen
