"""MLX on Apple's machines: affine groups, as mlx-lm reads them.

w = scale · q + bias with q from 0 up. Ours are symmetric, so bias = -2^(bits-1) · scale, exactly.
"""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spqlm.allocation.restriction import Alike
from spqlm.allocation.sizes import Sizes
from spqlm.checkpoint.manifest import Manifest
from spqlm.checkpoint.spec import WeightSpec
from spqlm.errors import CheckpointError, SpqError
from spqlm.formats import Format, StoredWeight
from spqlm.model.view import ModelView
from spqlm.modules.linear import Compressed
from spqlm.numerics.integer import dequantize_groups
from spqlm.targets._directory import read_tensors, refuse_experts, save_tensors
from spqlm.targets._earlier_config import state_earlier_names
from spqlm.targets._experts import (
    holds_experts,
    modules_to_store,
    stored_otherwise,
    weights_of_experts,
)
from spqlm.targets._integers import (
    OFFERED,
    Integers,
    grouping_refusal,
    integers,
    packed,
    packed_bytes,
    scheme,
    unpacked,
    widened,
)
from spqlm.targets.base import Package, Target
from spqlm.versions import version_of

PACKAGE = Package("mlx", "pip install mlx")
READER = Package("mlx_lm", "pip install mlx-lm")
GROUP_SIZES = (128, 64, 32)
BLOCKS = {"qwen3_moe": "mlp", "mixtral": "block_sparse_moe"}
"""What a layer's experts and their router are in, by `model_type`."""
PARTS = ("weight", "scales", "biases")
"""What a weight of integers is there."""
STACK = "switch_mlp"
"""What all experts of a layer are there, each projection in one tensor."""


def _width(bits: int) -> int:
    """Of a code there: MLX has no 7."""
    return 8 if bits == 7 else bits


def _group_size(shared: int) -> int:
    """The largest one of MLX that divides the columns that share a scale."""
    return next(size for size in GROUP_SIZES if shared % size == 0)


def _stored_bytes(form: Format, rows: int, columns: int, float_bytes: int) -> int:
    """Words of codes, scales and biases."""
    found = scheme(form, columns)
    if found is None:
        return form.stored_bytes(rows, columns, float_bytes)
    floats = 2 * rows * columns // _group_size(found.group_size)
    return packed_bytes(rows, columns, _width(found.bits)) + floats * float_bytes


class MlxTarget(Target):
    """Integers of 2 to 8 bits in groups of 32, 64 or 128, in layers and tables."""

    key: ClassVar[str] = "mlx"
    alike: ClassVar[Alike] = "experts"
    stacks_experts: ClassVar[bool] = True
    programs: ClassVar[tuple[str, ...]] = ("mlx-lm", "mlx_lm")
    offered: ClassVar[tuple[Format, ...]] = OFFERED
    sizes: ClassVar[Sizes] = Sizes(_stored_bytes)

    def check_model(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None
    ) -> None:
        """Experts of models whose names for them are known, and nothing that mlx-lm lacks."""
        if model.config.model_type not in BLOCKS:
            refuse_experts(self.key, model)
        _refuse_unknown(model.config.model_type)

    def kind(self, weight: StoredWeight) -> str | None:
        """Bits and the size of groups."""
        stated = _stated(weight)
        if stated is None:
            return None
        return f"{stated['bits']} bits in groups of {stated['group_size']}"

    def refusal(self, spec: WeightSpec) -> str | None:
        """Groups are of 32 inputs at least."""
        return grouping_refusal(spec, min(GROUP_SIZES))

    def value_refusal(self, weight: StoredWeight) -> str | None:
        """A bias is its scale times a power of two, which float16 may be too small for."""
        found = integers(weight)
        if found is None or bool(torch.isfinite(_bias(found)).all()):
            return None
        return f"{str(found.scale.dtype).removeprefix('torch.')} does not hold its biases"

    def wasteful(self, form: Format) -> str | None:
        """Levels that are not evenly spaced."""
        return widened(form)

    def write(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        place: Path,
        max_shard_size: str,
    ) -> int:
        """Codes in words, scales, biases, and the config that says bits and group sizes."""
        stated: dict[str, dict[str, int]] = {}
        otherwise = stored_otherwise(model)
        state = {
            _there(name, model): tensor
            for name, tensor in model.state_dict().items()
            if name not in otherwise
        }
        for name, weights in _parts(ModelView(model)):
            tensors = [_tensors(weight) for weight in weights]
            for part in tensors[0]:
                together = [found[part] for found in tensors]
                state[f"{name}.{part}"] = (
                    torch.stack(together) if _is_stack(name) else together[0]
                ).contiguous()
            fields = _stated(weights[0])
            if fields is not None:
                stated[name] = fields
        size = save_tensors(model, tokenizer, state, None, place, max_shard_size)
        _state_quantization(place / "config.json", stated)
        state_earlier_names(place / "config.json")
        return size

    def usage(self, name: str, manifest: Manifest | None) -> str:
        """Python of mlx-lm."""
        return f"from mlx_lm import load\n\nmodel, tokenizer = load({json.dumps(name)})"

    def verify(self, model: PreTrainedModel, place: Path) -> str:
        """Every weight is the same number for number."""
        stored = read_tensors(place)
        for name, weights in _parts(ModelView(model)):
            kinds = PARTS if _stated(weights[0]) else PARTS[:1]
            parts = [stored[f"{name}.{part}"] for part in kinds]
            for index, weight in enumerate(weights):
                own = [part[index] if _is_stack(name) else part for part in parts]
                if not torch.equal(_restored(weight, *own), weight.restore(torch.float32).cpu()):
                    raise CheckpointError(f"the weight of {name!r} did not read back as it was")
        by = "mlx" if PACKAGE.installed else "us, for want of the package mlx"
        return f"read every weight back by {by}, equal number for number"


def _refuse_unknown(model_type: str) -> None:
    """Refuse a model that mlx-lm has no code for, where that can be told: where it is installed."""
    if not READER.installed:
        return
    from mlx_lm.utils import MODEL_REMAPPING

    module = MODEL_REMAPPING.get(model_type, model_type)
    if importlib.util.find_spec(f"mlx_lm.models.{module}") is None:
        raise SpqError(
            f"mlx-lm {version_of('mlx-lm')}, which is installed, has no model of type "
            f"{model_type!r}; a newer one may"
        )


def _there(name: str, model: PreTrainedModel) -> str:
    """What mlx-lm calls something of a model."""
    return name.replace(".mlp.", f".{BLOCKS.get(model.config.model_type, 'mlp')}.")


def _is_stack(name: str) -> bool:
    return f".{STACK}." in name


def _parts(view: ModelView) -> Iterator[tuple[str, list[StoredWeight]]]:
    """Weights of compressed modules, one each, and projections of all experts, by names of MLX."""
    for name, module in modules_to_store(view):
        if holds_experts(module):
            stack = _there(f"{name.rpartition('.')[0]}.{STACK}", view.model)
            for projection, weights in weights_of_experts(module):
                yield f"{stack}.{projection}", weights
        elif isinstance(module, Compressed):
            yield _there(name, view.model), [module.stored_weight.detach()]


def _stated(weight: StoredWeight) -> dict[str, int] | None:
    """What config.json says of a weight; None of floats."""
    found = scheme(weight.format, weight.shape[1])
    if found is None:
        return None
    return {"group_size": _group_size(found.group_size), "bits": _width(found.bits)}


def _integers(weight: StoredWeight) -> Integers | None:
    """Those of a weight, in groups of a size and codes of a width that MLX has; None of floats."""
    found = integers(weight)
    if found is None:
        return None
    regrouped = found.regrouped(_group_size(found.group_size))
    return regrouped._replace(bits=_width(found.bits))


def _tensors(weight: StoredWeight) -> dict[str, Tensor]:
    found = _integers(weight)
    if found is None:
        return {"weight": weight.restore()}
    words = packed(found).view(torch.uint32)
    return {"weight": words, "scales": found.scale, "biases": _bias(found)}


def _restored(weight: StoredWeight, stored: Tensor, *parts: Tensor) -> Tensor:
    found = _integers(weight)
    if found is None:
        return stored.float()
    restore = _by_mlx if PACKAGE.installed else _by_us
    return restore(found, stored, *parts)


def _bias(weight: Integers) -> Tensor:
    return weight.scale * -(2 ** (weight.bits - 1))


def _state_quantization(file: Path, modules: dict[str, dict[str, int]]) -> None:
    """Say in config.json how each module is stored; the first fields stand for the others."""
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if modules:
        config["quantization"] = next(iter(modules.values())) | modules
    file.write_text(json.dumps(config, indent=2), encoding="utf-8")


def _by_us(weight: Integers, words: Tensor, scales: Tensor, biases: Tensor) -> Tensor:
    codes = unpacked(words.view(torch.int32), weight.bits, weight.codes.shape[1])
    if not torch.equal(biases, _bias(weight)):
        raise CheckpointError("a bias is not its scale's")
    return dequantize_groups(codes, scales.float())


def _by_mlx(weight: Integers, words: Tensor, scales: Tensor, biases: Tensor) -> Tensor:
    import mlx.core as mx

    there = mx.dequantize(
        mx.array(words.numpy()),
        mx.array(scales.float().numpy()),
        mx.array(biases.float().numpy()),
        weight.group_size,
        weight.bits,
        stream=mx.cpu,
    )
    return torch.from_numpy(np.array(there))


TARGET = MlxTarget
