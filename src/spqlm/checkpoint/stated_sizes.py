"""Sizes of layers as the config of the dense architecture states them: one for all layers."""

import copy
from typing import get_args

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedModel

from spqlm.checkpoint.dense import resized
from spqlm.checkpoint.structure import skeleton
from spqlm.model.families import Prunable
from spqlm.model.view import ModelView, text_config


def state_sizes(view: ModelView) -> None:
    """Write into the config what all layers have now, where the dense architecture can have it.

    Such a model is an ordinary one of smaller layers, which any program loads. Layers that differ,
    and sizes that the architecture cannot have, stay for `quantization_config` to state.

    Args:
        view: the model; its config is changed in place.
    """
    cut = resized(view.model)
    for kind in get_args(Prunable):
        layers = [layer for layer in view.layers if layer.prunable(kind)]
        names = {named.name for layer in layers for named, _ in layer.sides(kind)}
        sizes = {layer.units(kind) for layer in layers}
        if len(sizes) == 1 and not names.isdisjoint(cut):
            fields = stating(view, kind, sizes.pop())
            text_config(view.model).update(fields or {})


def stating(view: ModelView, kind: Prunable, size: int) -> dict[str, int] | None:
    """Fields of a config whose layers have so many neurons, or key/value groups.

    The model's class is asked: it builds the dense model of that config, without memory.

    Args:
        view: the model, of any sizes.
        kind: of what is counted.
        size: how many of it each layer that has such a block is to have.

    Returns:
        names and values, or None where the class refuses the config or builds something else.
    """
    model = view.model
    fields = _fields(view, kind, size)
    config = copy.deepcopy(model.config)
    try:
        config.get_text_config().update(fields)
        # Validates, as reading it from a file does.
        type(config).from_dict(config.to_dict())
        made = skeleton(model, config)
    except (ValueError, StrictDataclassError):
        return None
    return fields if _shapes(made) == _expected(ModelView(skeleton(model)), kind, size) else None


def _fields(view: ModelView, kind: Prunable, size: int) -> dict[str, int]:
    if kind == "mlp":
        return {view.family.mlp.size: size}
    config = text_config(view.model)
    heads = next(
        layer.query_heads // layer.key_value_groups for layer in view.layers if layer.prunable(kind)
    )
    stated = {
        "num_attention_heads": size * heads,
        "num_key_value_heads": size,
        # Where it is not stated it would follow from the number of heads.
        "head_dim": view.head_dim,
    }
    # Multi-head attention counts its heads once.
    return {k: v for k, v in stated.items() if k == "head_dim" or hasattr(config, k)}


def _shapes(model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}


def _expected(usual: ModelView, kind: Prunable, size: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the dense model's parameters with all blocks of a kind at a size."""
    found = _shapes(usual.model)
    for layer in usual.layers:
        for named, side in layer.sides(kind):
            rows, columns = found[f"{named.name}.weight"]
            if side == "input":
                found[f"{named.name}.weight"] = (rows, columns // layer.units(kind) * size)
                continue
            left = rows // layer.units(kind) * size
            found[f"{named.name}.weight"] = (left, columns)
            if named.module.bias is not None:
                found[f"{named.name}.bias"] = (left,)
    return found
