"""Between a model's structure and its specs, both ways."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from spqlm.checkpoint.spec import HeadCount, LinearPlace, ModuleSpec, WeightSpec, spec_of
from spqlm.errors import CheckpointError
from spqlm.model.opening import open_layers
from spqlm.model.tying import retie
from spqlm.modules.linear import Compressed


def skeleton(model: PreTrainedModel, config: PretrainedConfig | None = None) -> PreTrainedModel:
    """The dense model of the same config, or of another one, on the meta device."""
    with torch.device("meta"):
        dense: PreTrainedModel = type(model)._from_config(config or model.config)
    return dense


def is_factor(name: str, specs: Mapping[str, ModuleSpec]) -> bool:
    """Whether a module is a factor of a low-rank layer."""
    parent = specs.get(name.rpartition(".")[0])
    return isinstance(parent, WeightSpec) and parent.low_rank


def describe(model: PreTrainedModel) -> dict[str, ModuleSpec]:
    """Specs of all modules that differ from the dense model of the same config.

    Returns:
        by full module name, in the order of `model.named_modules()`; empty for a dense model.
    """
    ordinary = dict(skeleton(model).named_modules())
    specs: dict[str, ModuleSpec] = {}
    for name, module in model.named_modules():
        spec = spec_of(module)
        heads = HeadCount.of(module)
        if heads is not None and heads != HeadCount.of(ordinary.get(name)):
            specs[name] = heads
        if spec is None:
            continue
        usual = spec_of(ordinary[name]) if name in ordinary else None
        if spec.dense and (is_factor(name, specs) or spec == usual):
            continue
        specs[name] = spec
    return specs


def rebuild(model: PreTrainedModel, specs: dict[str, ModuleSpec], dtype: torch.dtype) -> None:
    """Give a dense skeleton the structure that `specs` state.

    Args:
        model: dense model of the checkpoint's config, on the meta device.
        specs: from `describe`.
        dtype: of the float tensors.

    Raises:
        CheckpointError: a spec for a module that is not there or cannot have that format or size.
    """
    open_layers(model, within=specs)
    for name in sorted(specs):  # a low-rank layer before its factors
        spec = specs[name]
        try:
            module: Any = model.get_submodule(name)
        except AttributeError:
            raise CheckpointError(
                f"quantization_config names the module {name!r}, which this model does not have"
            ) from None
        if not spec.fits(module):
            raise CheckpointError(
                f"module {name!r} cannot be what quantization_config states: {spec.dump()}"
            )
        if isinstance(spec, HeadCount):
            module.num_heads = spec.num_heads
            continue
        if is_factor(name, specs) and isinstance(spec.place, LinearPlace):
            if spec.place.shape != (module.out_features, module.in_features):
                raise CheckpointError(f"factor {name!r} does not fit its low-rank layer")
        model.set_submodule(name, spec.build(dtype))
        _leave_alone(model.get_submodule(name.rpartition(".")[0]))
    retie(model)


def _leave_alone(block: Any) -> None:
    """Keep transformers from drawing a weight of a block that has none of its own, as GPT-2's do.

    A block with a buffer is left to it: the buffer may be one that no file holds.
    """
    if not block._parameters and not block._buffers:
        block._is_hf_initialized = True


def check_values(model: nn.Module) -> set[str]:
    """Ask each compressed weight inside whether its values can be those of a weight.

    Returns:
        the types of devices that they are on.

    Raises:
        CheckpointError: they cannot; names the module.
    """
    devices = set()
    for name, module in model.named_modules():
        if not isinstance(module, Compressed):
            continue
        weight = module.stored_weight
        devices |= {tensor.device.type for tensor in weight.tensors().values()}
        if not any(tensor.is_meta for tensor in weight.tensors().values()):
            try:
                weight.check()
            except ValueError as error:
                raise CheckpointError(f"module {name!r} {error}") from None
    return devices
