"""`quant_method: spq` for vLLM: which of its layers hold which modules of a checkpoint."""

import math
import re
from typing import Any

import torch
from torch import nn
from vllm.model_executor.layers.fused_moe import RoutedExperts
from vllm.model_executor.layers.linear import (
    LinearBase,
    QKVParallelLinear,
    UnquantizedLinearMethod,
)
from vllm.model_executor.layers.quantization.base_config import (
    QuantizationConfig,
    QuantizeMethodBase,
)
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    VocabParallelEmbedding,
)
from vllm.model_executor.models.utils import WeightsMapper

from spqlm.checkpoint.quantizer import METHOD, SpqConfig
from spqlm.checkpoint.saved import ADVICE
from spqlm.checkpoint.spec import EmbeddingPlace, ModuleSpec, WeightSpec
from spqlm.errors import SpqError
from spqlm.serving.shards import column_multiple
from spqlm.serving.vllm_experts import VllmExperts, renamed
from spqlm.serving.vllm_method import OWN_BIAS, VllmMethod

# What some of vLLM's models call a block as earlier versions of transformers did, and its name now.
EARLIER, NOW = ".block_sparse_moe.", ".mlp."
# What stands between the names of a block and of a projection of all its experts.
EXPERTS = ".experts."


class VllmConfig(QuantizationConfig):
    """The `quantization_config` of a checkpoint of ours, as vLLM asks for it.

    Attributes:
        specs: what each module is, by vLLM's name of it.
        claimed: names of the modules that layers of ours hold.
        renamed: patterns for tensors of experts, by what vLLM delivers them as.
        heads: names of the blocks whose projections write or read attention heads.
        earlier: whether vLLM's model has the earlier names.
    """

    def __init__(self, stated: SpqConfig) -> None:
        """Of what the checkpoint states."""
        super().__init__()
        self.guards = [ADVICE] + ([stated.guard] if stated.guard else [])
        self.specs = dict(stated.specs)
        self.claimed: set[str] = set()
        self.renamed: dict[str, str] = {}
        self.heads: set[str] = set()
        self.earlier = False

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "VllmConfig":
        """Of the entry in `config.json`.

        Raises:
            CheckpointError: it is not well formed.
        """
        return cls(SpqConfig(**config))

    @classmethod
    def get_name(cls) -> str:
        """As checkpoints say it."""
        return METHOD

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        """Those that the kernels know."""
        return [torch.bfloat16, torch.float16, torch.float32]

    @classmethod
    def get_min_capability(cls) -> int:
        """Triton's; without a kernel products are PyTorch's."""
        return 70

    @staticmethod
    def get_config_filenames() -> list[str]:
        """None: all stands in `config.json`."""
        return []

    def apply_vllm_mapper(self, hf_to_vllm_mapper: WeightsMapper) -> None:
        """Take on the names that vLLM's model has.

        Projections of experts keep theirs: those that the mapper knows belong to other layouts.
        """
        found: dict[str, ModuleSpec] = {}
        for name, spec in self.specs.items():
            block, dot, projection = name.rpartition(EXPERTS)
            mapped = hf_to_vllm_mapper.map_name(block or name)
            if mapped is not None:
                found[mapped + dot + projection if block else mapped] = spec
        self.specs = found

    def get_checkpoint_weight_mapper(self) -> WeightsMapper:
        """Leave out what stops other loaders, and route biases to the layers that hold weights."""
        guards = "|".join(map(re.escape, self.guards))
        regexes: dict[re.Pattern[str], str | None] = {re.compile(rf"^({guards})$"): None}
        if self.earlier:
            regexes[re.compile(re.escape(NOW))] = EARLIER
        if self.claimed:
            claimed = "|".join(map(re.escape, sorted(self.claimed)))
            regexes[re.compile(rf"({claimed})\.bias$")] = rf"\1.{OWN_BIAS}"
        regexes |= {re.compile(old): new for old, new in self.renamed.items()}
        return WeightsMapper(orig_to_new_regex=regexes)

    def get_quant_method(self, layer: nn.Module, prefix: str) -> QuantizeMethodBase | None:
        """One of ours for a layer that holds a module of which the checkpoint states something.

        Raises:
            SpqError: vLLM computes several such modules in a layer of a kind that is not known.
        """
        if EARLIER in prefix and not self.earlier:
            self.earlier = True
            self.specs = {name.replace(NOW, EARLIER): spec for name, spec in self.specs.items()}
        if isinstance(layer, VocabParallelEmbedding) and not isinstance(layer, ParallelLMHead):
            names = [prefix if prefix in self.specs else self._table(layer)]
        elif isinstance(layer, LinearBase | VocabParallelEmbedding):
            names = self._shards(prefix)
        else:
            inside = next((name for name in self.specs if name.startswith(f"{prefix}.")), None)
            if isinstance(layer, RoutedExperts):
                self.renamed |= renamed(layer, prefix, inside is not None)
                return None if inside is None else VllmExperts(self, layer, prefix)
            if inside is not None:
                raise SpqError(
                    f"vLLM has no layer of its own for the module {inside!r}: a "
                    f"{type(layer).__name__} computes it with others"
                )
            return None
        if isinstance(layer, QKVParallelLinear):
            self.heads.add(parent(prefix))
        if not any(isinstance(self.specs.get(name), WeightSpec) for name in names):
            return UnquantizedLinearMethod() if isinstance(layer, LinearBase) else None
        self.claimed.update(names)
        return VllmMethod(self, names)

    def _shards(self, prefix: str) -> list[str]:
        """Names of the modules that a layer of vLLM holds, which may be several."""
        own = prefix.rpartition(".")[2]
        block = prefix.removesuffix(own)
        return [block + part for part in self.packed_modules_mapping.get(own, [own])]

    def _table(self, layer: VocabParallelEmbedding) -> str:
        """The embedding, which some of vLLM's models make without its name."""
        shape = (layer.org_vocab_size, layer.embedding_dim)
        found = [
            name
            for name, spec in self.specs.items()
            if isinstance(spec, WeightSpec)
            and isinstance(spec.place, EmbeddingPlace)
            and spec.place.shape == shape
        ]
        return found[0] if len(found) == 1 else ""

    def neurons_multiple(self, name: str, neurons: int) -> int:
        """What the neurons of a block go by, since the layer that reads them is cut alike.

        Args:
            name: of any module of the block.
            neurons: that the block has.
        """
        readers = [
            other
            for other, spec in self.specs.items()
            if parent(other) == parent(name)
            and isinstance(spec, WeightSpec)
            and spec.place.shape[1] == neurons
        ]
        return math.lcm(*(column_multiple(reader, self.specs) for reader in readers))


def parent(name: str) -> str:
    """The block that a module stands in."""
    return name.rpartition(".")[0]
