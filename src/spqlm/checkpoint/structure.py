"""Between a model's structure and its specs, both ways."""

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from spqlm.checkpoint.spec import (
    AttentionSpec,
    Int4EmbeddingSpec,
    LinearShape,
    LinearSpec,
    LowRankSpec,
    ModuleSpec,
    QuantizedEmbeddingSpec,
    spec_of,
)
from spqlm.errors import CheckpointError
from spqlm.model.tying import retie


def describe(model: PreTrainedModel) -> dict[str, ModuleSpec]:
    """Specs of all modules that differ from the dense model of the same config.

    Returns:
        by full module name, in the order of `model.named_modules()`; empty for a dense model.
    """
    with torch.device("meta"):
        dense = AutoModelForCausalLM.from_config(model.config)
    ordinary = dict(dense.named_modules())
    specs: dict[str, ModuleSpec] = {}
    for name, module in model.named_modules():
        spec = spec_of(module)
        inside_low_rank = name.rpartition(".")[0] in specs and isinstance(
            specs[name.rpartition(".")[0]], LowRankSpec
        )
        if isinstance(spec, LinearSpec) and (
            inside_low_rank or spec == spec_of(ordinary.get(name, module))
        ):
            continue
        if spec is not None:
            specs[name] = spec
        heads = getattr(module, "num_heads", None)
        if heads is not None and heads != getattr(ordinary.get(name), "num_heads", None):
            specs[name] = AttentionSpec(num_heads=heads)
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
    for name in sorted(specs):  # a low-rank layer before its factors
        spec = specs[name]
        try:
            module = model.get_submodule(name)
        except AttributeError:
            raise CheckpointError(
                f"quantization_config names the module {name!r}, which this model does not have"
            ) from None
        _check(name, spec, module)
        inside_low_rank = isinstance(specs.get(name.rpartition(".")[0]), LowRankSpec)
        if inside_low_rank and isinstance(spec, LinearShape):
            sizes: Any = (module.in_features, module.out_features)
            if (spec.in_features, spec.out_features) != sizes:
                raise CheckpointError(f"factor {name!r} does not fit its low-rank layer")
        if isinstance(spec, AttentionSpec):
            setattr(module, "num_heads", spec.num_heads)  # noqa: B010  (modules type no ints)
        else:
            model.set_submodule(name, spec.build(dtype))
    retie(model)


def _check(name: str, spec: ModuleSpec, module: nn.Module) -> None:
    """Refuse what cannot be a smaller form of the module that is there."""
    if isinstance(spec, AttentionSpec):
        heads = getattr(module, "num_heads", None)
        fits = isinstance(heads, int) and spec.num_heads <= heads
    elif isinstance(spec, QuantizedEmbeddingSpec | Int4EmbeddingSpec):
        shape = (spec.num_embeddings, spec.embedding_dim)
        fits = isinstance(module, nn.Embedding) and shape == tuple(module.weight.shape)
    else:
        fits = (
            isinstance(module, nn.Linear)
            and spec.in_features <= module.in_features
            and spec.out_features <= module.out_features
            and spec.bias == (module.bias is not None)
        )
        if isinstance(spec, LowRankSpec):
            fits = fits and spec.rank <= min(spec.in_features, spec.out_features)
    if not fits:
        raise CheckpointError(
            f"module {name!r} cannot be what quantization_config states: {spec.model_dump()}"
        )
