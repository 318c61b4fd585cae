"""One file for llama.cpp, and what is built on it.

Codes stay the same numbers: int2 to int4 become Q4_0, int5 Q5_0, int6 to int8 Q8_0, whose blocks
of 32 repeat a scale that more inputs share. Levels of nl2 to nl5 are codes of Q8_0. Formats that
are ggml's own stay what they are.
"""

import shlex
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from spqlm.allocation.sizes import Sizes
from spqlm.checkpoint.dense import resized
from spqlm.checkpoint.manifest import Manifest
from spqlm.checkpoint.spec import WeightSpec
from spqlm.errors import CheckpointError
from spqlm.formats import Format, StoredWeight, parse
from spqlm.model.view import ModelView
from spqlm.modules.linear import Compressed
from spqlm.modules.ops import stored_weight
from spqlm.targets._gguf_blocks import (
    BLOCK,
    encoded,
    exact,
    is_type,
    stored_bytes,
    wasteful,
)
from spqlm.targets._integers import grouping_refusal
from spqlm.targets.base import Package, Target

if TYPE_CHECKING:
    import gguf

    from spqlm.targets._gguf_keys import Architecture

Part = StoredWeight | Tensor
OFFERED = (
    *(parse({name: {"group_size": BLOCK}}) for name in ("int4", "int5")),
    *map(parse, ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q8_0")),
    *map(parse, ("q4_1", "q5_1", "iq4_nl", "iq4_xs")),
)
# What a file of mostly one type is called, where that is not its own name.
FILE_TYPES = {"F32": "ALL_F32"} | {k: f"MOSTLY_{k}_M" for k in ("Q3_K", "Q4_K", "Q5_K")}
# Bytes of the key that names the type of most weights.
FILE_TYPE = 64


class GgufTarget(Target):
    """Every weight of which 32 inputs share a scale, in architectures that llama.cpp has."""

    key: ClassVar[str] = "gguf"
    programs: ClassVar[tuple[str, ...]] = ("llama.cpp", "llamacpp", "llama-cpp", "ollama", "lmstudio", "lm-studio")
    one_file: ClassVar[bool] = True
    # A tensor has a name, its sizes and its place, and begins at a multiple of 32.
    sizes: ClassVar[Sizes] = Sizes(stored_bytes, vector=4, tensor=112, tensors=1)
    offered: ClassVar[tuple[Format, ...]] = OFFERED
    needs: ClassVar[Package | None] = Package("gguf", "pip install 'spqlm[gguf]'", "0.17")

    def refusal(self, spec: WeightSpec) -> str | None:
        """Integers are in blocks of 32 inputs, with one scale and no zero point."""
        if is_type(spec.form):
            return None
        return grouping_refusal(spec, BLOCK)

    def value_refusal(self, weight: StoredWeight) -> str | None:
        """Scales are float16 there."""
        return None if exact(weight) else "float16 does not hold all of its scales"

    def wasteful(self, form: Format) -> str | None:
        """What one of ggml's own types betters at the same bytes."""
        return wasteful(form)

    def resizing_refusal(self, config: PretrainedConfig) -> str | None:
        """Llama's layers may differ in size."""
        if config.model_type in ("llama", "mistral"):
            return None
        return f"llama.cpp gives every layer of a {config.model_type} the same size"

    def check_model(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None
    ) -> None:
        """Llama.cpp has the architecture, and GGUF the kind of tokenizer."""
        from spqlm.targets._gguf_keys import architecture
        from spqlm.targets._gguf_tokenizer import check_tokenizer

        architecture(model.config)
        check_tokenizer(tokenizer, model.config.vocab_size)

    def other_bytes(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> int:
        """Keys and tokenizer, as a file of them alone."""
        view = ModelView(model)
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "keys.gguf"
            _finish(_writer(view, _architecture(model), tokenizer, place))
            return place.stat().st_size + FILE_TYPE

    def write(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        place: Path,
        max_shard_size: str,
    ) -> int:
        """Keys, tokenizer and tensors, in one file however large."""
        import gguf

        view = ModelView(model)
        known = _architecture(model)
        writer = _writer(view, known, tokenizer, place)
        kinds: Counter[str] = Counter()
        for name, part in _named_parts(view, known):
            kind, data = _encoded(part)
            kinds[kind] += data.nbytes
            writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType[kind])
        [(most, _)] = kinds.most_common(1)
        writer.add_file_type(gguf.LlamaFileType[FILE_TYPES.get(most, f"MOSTLY_{most}")])
        _finish(writer)
        return place.stat().st_size

    def usage(self, name: str, manifest: Manifest | None) -> str:
        """The command line of llama.cpp."""
        return f'llama-cli -m {shlex.quote(name)} -p "The sea was"'

    def record(self, manifest: Manifest, directory: Path, name: str) -> None:
        """Nothing: the file stands alone."""

    def verify(self, model: PreTrainedModel, place: Path) -> str:
        """Every tensor is there, and is the same number for number."""
        import gguf

        view, known = ModelView(model), _architecture(model)
        found = {tensor.name: tensor for tensor in gguf.GGUFReader(place).tensors}
        expected = dict(_named_parts(view, known))
        if found.keys() - {"rope_freqs.weight"} != expected.keys():
            raise CheckpointError("the gguf file does not hold the model's tensors")
        for name, part in expected.items():
            there = gguf.dequantize(found[name].data, found[name].tensor_type)
            if not np.array_equal(there, _values(part).numpy()):
                raise CheckpointError(f"the tensor {name!r} in the gguf file is not the model's")
        return "read every tensor back with the package gguf, equal number for number"


def _writer(
    view: ModelView,
    known: "Architecture",
    tokenizer: PreTrainedTokenizerBase | None,
    place: Path,
) -> "gguf.GGUFWriter":
    """A file with everything but the tensors of modules and the type that most of them have."""
    import gguf

    from spqlm.targets._gguf_keys import frequency_factors, write_keys
    from spqlm.targets._gguf_tokenizer import write_tokenizer

    config = view.model.config
    writer = gguf.GGUFWriter(place, known.name)
    name = Path(config.name_or_path or config.model_type).name
    writer.add_name(name.removesuffix(".gguf"))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    write_keys(writer, view, known)
    assert tokenizer is not None
    write_tokenizer(writer, tokenizer, config.vocab_size)
    factors = frequency_factors(view.model)
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", factors.numpy())
    return writer


def _finish(writer: "gguf.GGUFWriter") -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _architecture(model: PreTrainedModel) -> "Architecture":
    from spqlm.targets._gguf_keys import DECI, architecture

    return DECI if resized(model) else architecture(model.config)


def _named_parts(view: ModelView, known: "Architecture") -> Iterator[tuple[str, Part]]:
    """Weights, biases and norms in llama.cpp's order of rows, by its names."""
    import gguf

    from spqlm.targets._gguf_keys import paired_rows

    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == known.name)
    names = gguf.get_tensor_name_map(arch, len(view.layers))
    turned = set()
    if known.pairs:
        turned = {named.name for layer in view.layers for named in (layer.query, layer.key)}
    for name, module_name, part in _parts(view):
        if module_name in turned:
            rows = len(part) if isinstance(part, Tensor) else part.shape[0]
            order = paired_rows(rows, view.head_dim)
            part = part[order] if isinstance(part, Tensor) else part.take_rows(order)
        elif known.norm_shift and "norm" in name:
            assert isinstance(part, Tensor)
            part = part.float() + known.norm_shift
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert found is not None
        yield found, part


def _parts(view: ModelView) -> Iterator[tuple[str, str, Part]]:
    """Name, module and value of everything that is stored; of a tied pair the embedding."""
    tied = view.lm_head.name if view.tied else None
    for name, module in view.model.named_modules():
        if name == tied:
            continue
        if isinstance(module, Compressed | nn.Linear | nn.Embedding):
            yield f"{name}.weight", name, stored_weight(module).detach()
            bias = getattr(module, "bias", None)
            if bias is not None:
                yield f"{name}.bias", name, bias.detach()
        else:
            for part, tensor in module.named_parameters(recurse=False):
                yield f"{name}.{part}", name, tensor.detach()


def _encoded(part: Part) -> tuple[str, np.ndarray]:
    """The type in GGUF, and the data: bytes row by row, or floats."""
    if isinstance(part, Tensor):
        return "F32", part.float().cpu().numpy()  # llama.cpp wants vectors so
    found = encoded(part)
    if found is not None:
        kind, data = found
        return kind, data.cpu().numpy()
    weight = part.restore().cpu().contiguous()
    kind = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}[weight.dtype]
    return kind, weight.view(torch.uint8).numpy()


def _values(part: Part) -> Tensor:
    """What the file must hold, float32."""
    return (part.float() if isinstance(part, Tensor) else part.restore(torch.float32)).cpu()


TARGET = GgufTarget
