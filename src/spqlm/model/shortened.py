"""Decoders with fewer layers: what their config states, and taking layers out of one."""

import copy
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from spqlm.errors import SpqError
from spqlm.model.view import ModelView, text_config

# What a layer knows of its place.
INDEX = "layer_idx"


def check_shorter(view: ModelView, names: Collection[str]) -> None:
    """Refuse to leave layers out of an architecture whose config cannot state the rest.

    The model's class is asked: it builds the dense model of that config, without memory.

    Args:
        view: the model.
        names: full names of layers.

    Raises:
        SpqError: the class refuses the config, or builds other layers than those that stay.
    """
    config = copy.deepcopy(view.model.config)
    kept = [index for index, layer in enumerate(view.layers) if layer.name not in names]
    try:
        text = config.get_text_config()
        text.update(_fields(text, kept, len(view.layers)))
        # Validates, as reading it from a file does.
        type(config).from_dict(config.to_dict())
        made = _layers(_skeleton(view.model, config))
    except (ValueError, StrictDataclassError):
        made = []
    usual = _layers(_skeleton(view.model, view.model.config))
    if [_facts(layer) for layer in made] != [_facts(usual[index]) for index in kept]:
        raise SpqError(
            f"layers of {text_config(view.model).model_type!r} cannot be left out: its config "
            "cannot state the ones that stay; take `left_out: 0`"
        )


def leave_out(view: ModelView, names: Collection[str]) -> None:
    """Take layers out, in place; those that stay are counted anew, and the config states them.

    Args:
        view: the model, for which `check_shorter` found nothing wrong.
        names: full names of layers.
    """
    layers = view.layers
    kept = [index for index, layer in enumerate(layers) if layer.name not in names]
    modules = [view.module(layers[index].name) for index in kept]
    for place, layer in enumerate(modules):
        for module in layer.modules():
            if isinstance(getattr(module, INDEX, None), int):
                setattr(module, INDEX, place)
    view.replace(layers[0].name.rpartition(".")[0], nn.ModuleList(modules))
    text = text_config(view.model)
    text.update(_fields(text, kept, len(layers)))


def renumbered(view: ModelView, names: Collection[str]) -> dict[str, str]:
    """What layers that stay are called when those called `names` are out, by their name now."""
    kept = [layer.name for layer in view.layers if layer.name not in names]
    return {old: layer.name for old, layer in zip(kept, view.layers, strict=False)}


@contextmanager
def passed_by(view: ModelView, names: Collection[str]) -> Iterator[None]:
    """Inside, what enters each of these layers leaves it as it came; they are run all the same."""

    def hook(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
        states: Tensor = given[0] if given else named["hidden_states"]
        return (states, *output[1:]) if isinstance(output, tuple) else states

    handles = [view.module(name).register_forward_hook(hook, with_kwargs=True) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _fields(text: Any, kept: list[int], count: int) -> dict[str, Any]:
    """Of a config: how many layers there are, and whatever it states of each."""
    lists = {
        key: [value[index] for index in kept]
        for key, value in text.to_dict().items()
        if isinstance(value, list) and len(value) == count and not key.endswith("token_id")
    }
    return {"num_hidden_layers": len(kept), **lists}


def _skeleton(model: PreTrainedModel, config: PretrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        made: PreTrainedModel = type(model)._from_config(config)
    return made


def _layers(model: PreTrainedModel) -> list[nn.Module]:
    view = ModelView(model)
    return [view.module(layer.name) for layer in view.layers]


def _facts(layer: nn.Module) -> list[tuple[Any, ...]]:
    """Modules of a layer, with shapes and whatever else tells them from others."""
    return [
        (
            name,
            type(module),
            [(key, p.shape) for key, p in module.named_parameters(recurse=False)],
            {k: v for k, v in vars(module).items() if k != INDEX and isinstance(v, _SIMPLE)},
        )
        for name, module in layer.named_modules()
    ]


_SIMPLE = (bool, int, float, str, type(None))
