"""The layouts of compressed-tensors: vLLM, SGLang and plain transformers.

`pack-quantized` holds codes of 2 to 8 bits with a scale for each group of inputs or each row.
Weights that engines compute in one product (q, k and v; gate and up) must have one scheme there;
where their schemes differ, the codes are stored in the widest one's bits and the scales repeated,
so the numbers stay.
`int-quantized` holds int8 weights whose inputs are rounded to int8 as they come (W8A8).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from spqlm.allocation.restriction import Alike
from spqlm.allocation.sizes import Sizes
from spqlm.checkpoint.card import transformers_snippet
from spqlm.checkpoint.manifest import Manifest
from spqlm.checkpoint.spec import EmbeddingPlace, WeightSpec
from spqlm.checkpoint.structure import skeleton
from spqlm.checkpoint.verify import fixed_logits
from spqlm.errors import CheckpointError, SpqError
from spqlm.formats import Format
from spqlm.model.view import ModelView, Named
from spqlm.modules.linear import CompressedLinear
from spqlm.modules.ops import dense_weight
from spqlm.numerics.integer import dequantize_groups
from spqlm.targets._directory import read_tensors, refuse_experts, save_tensors
from spqlm.targets._earlier_config import state_earlier_names
from spqlm.targets._experts import stored_otherwise
from spqlm.targets._integers import (
    OFFERED,
    Integers,
    common,
    grouping_refusal,
    integers,
    packed,
    packed_bytes,
    scheme,
    unpacked,
    widened,
)
from spqlm.targets.base import Package, Target

# Earlier ones have a layout of their own for 3, 5, 6 and 7 bits, in which words are not full.
PACKAGE = Package("compressed_tensors", "pip install -U compressed-tensors", "0.18")
# Columns that fill whole words of 32 bits at every width from two bits on.
MULTIPLE = 16
# Bytes of the tensor that states a weight's shape.
SHAPE = 16
PACKED, INT8_INPUTS = "pack-quantized", "int-quantized"
# Inputs, each token at a scale of its own as it comes.
ROUNDED = {
    "num_bits": 8,
    "type": "int",
    "symmetric": True,
    "strategy": "token",
    "dynamic": True,
}


def _stored_bytes(form: Format, rows: int, columns: int, float_bytes: int) -> int:
    """Words of codes, scales and the shape; members of a fused set have one scheme anyway."""
    found = scheme(form, columns)
    if found is None:
        return form.stored_bytes(rows, columns, float_bytes)
    scales = rows * columns // found.group_size * float_bytes
    return packed_bytes(rows, columns, found.bits) + scales + SHAPE


class CompressedTensorsTarget(Target):
    """Integers in the layers of the decoder; embedding and lm_head are floats."""

    key: ClassVar[str] = "compressed-tensors"
    programs: ClassVar[tuple[str, ...]] = ("transformers", "vllm", "sglang")
    alike: ClassVar[Alike] = "fused"
    offered: ClassVar[tuple[Format, ...]] = OFFERED
    sizes: ClassVar[Sizes] = Sizes(_stored_bytes)

    def check_model(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None
    ) -> None:
        """No experts: each engine reads them in another layout. And linear layers are linear.

        Others find a layer by its class, and fill one that they do not find with random numbers.
        """
        refuse_experts(self.key, model)
        classes = {name: type(module) for name, module in skeleton(model).named_modules()}
        for named in ModelView(model).leaves():
            kind = classes.get(named.name, nn.Linear)
            if kind is not nn.Linear:
                raise SpqError(
                    f"{self.key} is read into linear layers alone, and {named.name!r} of "
                    f"{model.config.model_type!r} is a {kind.__name__}"
                )

    def refusal(self, spec: WeightSpec) -> str | None:
        """Tables have no integers there, and scales belong to whole groups."""
        if isinstance(spec.place, EmbeddingPlace):
            return "it has no integers in embeddings"
        return None if spec.form.rounds_inputs else grouping_refusal(spec, MULTIPLE)

    def refused(self, view: ModelView) -> dict[str, str]:
        """Where one weight of a fused set is in floats, all are; so it is with rounded inputs."""
        found = super().refused(view)
        if not view.tied and isinstance(view.lm_head.module, CompressedLinear):
            found[view.lm_head.name] = "engines read the lm_head in floats"
        for layer in view.layers:
            for members in layer.together:
                held = {named.name: _held(named, found) for named in members}
                inside = {name: weight for name, weight in held.items() if weight is not None}
                names = ", ".join(held)
                if len({weight.int8_inputs for weight in inside.values()}) > 1:
                    found |= dict.fromkeys(inside, f"of {names} only some round their inputs")
                elif 0 < len(inside) < len(members):
                    found |= dict.fromkeys(inside, f"of {names} some are floats")
        return found

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
        """Packed codes, scales, and the config that says which layer is stored how."""
        view = ModelView(model)
        schemes = dict(_schemes(view))
        otherwise = stored_otherwise(model)
        state = {name: part for name, part in model.state_dict().items() if name not in otherwise}
        for name, weight in schemes.items():
            state[f"{name}.weight_scale"] = weight.scale.contiguous()
            if weight.int8_inputs:
                state[f"{name}.weight"] = weight.codes
                continue
            state[f"{name}.weight_packed"] = packed(weight)
            state[f"{name}.weight_shape"] = torch.tensor(weight.codes.shape)
        config = _config(schemes, _floats(view, schemes)) if schemes else None
        disk = save_tensors(model, tokenizer, state, config, place, max_shard_size)
        state_earlier_names(place / "config.json", by_kind=False)
        return disk

    def usage(self, name: str, manifest: Manifest | None) -> str:
        """Transformers, which reads it with the package compressed-tensors."""
        return transformers_snippet(name, ours=False)

    def verify(self, model: PreTrainedModel, place: Path) -> str:
        """Every weight is the same number for number, as transformers unpacks it."""
        schemes = dict(_schemes(ModelView(model)))
        if PACKAGE.missing is None:
            loaded: Any = AutoModelForCausalLM.from_pretrained(place, dtype=model.dtype)
            fixed_logits(loaded)  # it unpacks weights in its first forward pass
            found = {name: loaded.get_submodule(name).weight for name in schemes}
            how = "transformers and compressed-tensors"
        else:
            stored = read_tensors(place)
            found = {name: _restored(stored, name, weight) for name, weight in schemes.items()}
            how = f"us, for want of {PACKAGE.missing}"
        for name, weight in found.items():
            if not torch.equal(weight.cpu(), dense_weight(model.get_submodule(name)).cpu()):
                raise CheckpointError(f"the weight of {name!r} did not read back as it was")
        return f"read every weight back by {how}, equal number for number"


def _held(named: Named, refused: dict[str, str]) -> Integers | None:
    module = named.module
    if named.name in refused or not isinstance(module, CompressedLinear):
        return None
    return integers(module.stored_weight.detach())


def _schemes(view: ModelView) -> Iterator[tuple[str, Integers]]:
    """Integers of every layer that has some, by full name, those of a fused set in one scheme."""
    for layer in view.layers:
        sets = layer.together
        together = {named.name for members in sets for named in members}
        alone = [[named] for named in layer.linears if named.name not in together]
        for members in [*sets, *alone]:
            held = {named.name: _held(named, {}) for named in members}
            found = {name: weight for name, weight in held.items() if weight is not None}
            yield from zip(found, common(list(found.values())), strict=True)


def _floats(view: ModelView, schemes: dict[str, Integers]) -> list[str]:
    """Linear layers that stay as they are."""
    return [named.name for named in view.linears() if named.name not in schemes]


def _restored(stored: dict[str, Tensor], name: str, like: Integers) -> Tensor:
    """What the stored tensors of a layer stand for."""
    if like.int8_inputs:
        codes = stored[f"{name}.weight"]
    else:
        columns = int(stored[f"{name}.weight_shape"][1])
        codes = unpacked(stored[f"{name}.weight_packed"], like.bits, columns)
    return dequantize_groups(codes, stored[f"{name}.weight_scale"])


def _config(schemes: dict[str, Integers], ignored: list[str]) -> dict[str, Any]:
    """The `quantization_config`: a group for each scheme, its layers by name."""
    layers: dict[tuple[int, int | None, bool], list[str]] = {}
    for name, weight in schemes.items():
        size = weight.group_size if weight.scale.shape[1] > 1 else None
        layers.setdefault((weight.bits, size, weight.int8_inputs), []).append(name)
    groups = {
        f"group_{index}": {
            "targets": names,
            "format": INT8_INPUTS if int8_inputs else PACKED,
            "weights": {
                "num_bits": bits,
                "type": "int",
                "symmetric": True,
                "strategy": "channel" if size is None else "group",
                "group_size": size,
                "dynamic": False,
            },
            **({"input_activations": ROUNDED} if int8_inputs else {}),
        }
        for index, ((bits, size, int8_inputs), names) in enumerate(layers.items())
    }
    formats = {str(group["format"]) for group in groups.values()}
    return {
        "quant_method": "compressed-tensors",
        "format": formats.pop() if len(groups) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": ignored,
    }


TARGET = CompressedTensorsTarget
