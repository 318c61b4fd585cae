"""Integer arithmetic for prompts: inputs of int8 layers are rounded to int8, too."""

from transformers import PreTrainedModel

from spqlm.errors import SpqError
from spqlm.modules.linear import CompressedLinear


def round_activations(model: PreTrainedModel) -> PreTrainedModel:
    """Have a decoder's int8 layers multiply integers wherever many tokens come at once.

    Prefill gets faster and a little less exact; decoding, other layers, and what is saved stay.

    Raises:
        SpqError: no layer has int8 weights.
    """
    layers = _int8_layers(model)
    if not layers:
        raise SpqError("int8 activations need layers with int8 weights, and this model has none")
    for layer in layers:
        layer.int8_inputs = True
    return model


def can_round_activations(model: PreTrainedModel) -> bool:
    """Whether there are int8 layers."""
    return bool(_int8_layers(model))


def rounds_activations(model: PreTrainedModel) -> bool:
    """Whether `round_activations` was applied."""
    return any(layer.int8_inputs for layer in _int8_layers(model))


def _int8_layers(model: PreTrainedModel) -> list[CompressedLinear]:
    layers = [m for m in model.get_decoder().modules() if isinstance(m, CompressedLinear)]
    return [layer for layer in layers if layer.format.int8_products]
