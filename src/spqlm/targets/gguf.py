"""One file for llama.cpp, and what is built on it.

Codes stay the same numbers: int2 to int4 become Q4_0, int5 Q5_0, int6 to int8 Q8_0, whose blocks
of 32 repeat a scale that more inputs share. Levels of nl2 to nl5 are codes of Q8_0. Formats that
are ggml's own stay what they are.
"""

import shlex
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from spqlm.allocation.restriction import Alike
from spqlm.allocation.sizes import Sizes
from spqlm.checkpoint.dense import resized
from spqlm.checkpoint.manifest import Manifest
from spqlm.checkpoint.spec import WeightSpec
from spqlm.errors import CheckpointError
from spqlm.formats import Format, StoredWeight, parse
from spqlm.model.view import ModelView
from spqlm.targets._gguf_blocks import BLOCK, exact, is_type, stored_bytes, type_of, wasteful
from spqlm.targets._gguf_parts import encode, named_parts, values_of
from spqlm.targets._integers import grouping_refusal
from spqlm.targets.base import Package, Target

if TYPE_CHECKING:
    import gguf

    from spqlm.targets._gguf_keys import Architecture

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
    programs: ClassVar[tuple[str, ...]] = ("llama.cpp", "llama-cpp", "ollama", "lmstudio")
    one_file: ClassVar[bool] = True
    alike: ClassVar[Alike] = "experts"
    stacks_experts: ClassVar[bool] = True
    # A tensor has a name, its sizes and its place, and begins at a multiple of 32.
    sizes: ClassVar[Sizes] = Sizes(stored_bytes, vector=4, tensor=112, tensors=1)
    offered: ClassVar[tuple[Format, ...]] = OFFERED
    needs: ClassVar[Package | None] = Package("gguf", "pip install 'spqlm[gguf]'", "0.17")

    def refusal(self, spec: WeightSpec) -> str | None:
        """Integers are in blocks of 32 inputs, with one scale and no zero point."""
        if is_type(spec.form):
            return None
        return grouping_refusal(spec, BLOCK)

    def kind(self, weight: StoredWeight) -> str | None:
        """Its type."""
        return type_of(weight.format, weight.shape[1])

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
        for name, part in named_parts(view, known):
            kind, data = encode(part)
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
        # One by one: halves of experts' weights are copies.
        for name, part in named_parts(view, known):
            tensor = found.pop(name, None)
            if tensor is None:
                raise CheckpointError(f"the gguf file does not hold the model's tensor {name!r}")
            there = gguf.dequantize(tensor.data, tensor.tensor_type)
            if not np.array_equal(there, values_of(part).numpy()):
                raise CheckpointError(f"the tensor {name!r} in the gguf file is not the model's")
        if found.keys() - {"rope_freqs.weight"}:
            raise CheckpointError("the gguf file does not hold the model's tensors alone")
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


TARGET = GgufTarget
