"""A layer of vLLM whose weights are ours: how they are read, cut and multiplied by."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from vllm.config import get_current_vllm_config
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    LinearMethodBase,
    QKVParallelLinear,
    RowParallelLinear,
)
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

from spqlm.errors import SpqError
from spqlm.kernels.product import take_rows
from spqlm.modules.ops import stored_weight
from spqlm.serving.shards import (
    Cut,
    Part,
    Shard,
    bias_name,
    cut,
    joined,
    tensors_of,
    weight_of,
)
from spqlm.serving.shares import even, places
from spqlm.serving.vllm_delivery import expect

if TYPE_CHECKING:
    from spqlm.serving.vllm_config import VllmConfig

OWN_BIAS = "spq_bias"
"""What a bias is called until it is ours: vLLM's own has the config's size, pruned or not."""

SHARD_IDS = {None: 0, "q": 0, "k": 1, "v": 2}


class VllmMethod(LinearMethodBase):
    """The modules of a checkpoint that one layer of vLLM holds, in vLLM's order.

    Attributes:
        names: of the modules.
        adapters: whether vLLM adds what LoRA adapters give, at the places of the config's sizes.
    """

    def __init__(self, config: "VllmConfig", names: list[str]) -> None:
        """See `VllmConfig.get_quant_method`."""
        self.adapters = get_current_vllm_config().lora_config is not None
        self.config = config
        self.names = names
        self.read: list[dict[str, Tensor]] = [{} for _ in names]

    def create_weights(
        self,
        layer: Any,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **attributes: Any,
    ) -> None:
        """Put a parameter of size zero wherever a tensor of the checkpoint will be delivered."""
        layer.spq_dtype = params_dtype
        layer.spq_places = output_partition_sizes
        for name in self.names:
            parts = tensors_of(name, self.config.specs, params_dtype)
            bias = bias_name(name, self.config.specs)
            if bias is not None:
                parts[bias if "." in bias else OWN_BIAS] = params_dtype
            for part, dtype in parts.items():
                expect(layer, part, dtype, self._receiver(part))

    def _receiver(self, part: str) -> Callable[..., None]:
        key = "bias" if part == OWN_BIAS else part

        def receive(
            parameter: nn.Parameter, loaded: Tensor, shard: str | int | None = None
        ) -> None:
            index = shard if isinstance(shard, int) else SHARD_IDS[shard]
            # A copy: what is mapped from a file may lie anywhere, and would keep the file open.
            self.read[index][key] = loaded.to(parameter.device, copy=True)

        return receive

    def process_weights_after_loading(self, layer: Any) -> None:
        """Make modules of what was read, and forget the places where it was delivered."""
        if hasattr(layer, "spq_shards"):
            return
        parts = joined([self._part(layer, index) for index in range(len(self.names))])
        self.read.clear()
        for part in [*layer._parameters, *layer._modules]:
            delattr(layer, part)
        layer.register_parameter("bias", None)
        layer.spq_shards = nn.ModuleList(Shard.of(*part) for part in parts)
        if self.adapters:
            device = next(layer.spq_shards.parameters()).device
            _show_dtype(layer, torch.empty(0, dtype=layer.spq_dtype, device=device))

    def _part(self, layer: Any, index: int) -> Part:
        name, read, specs = self.names[index], self.read[index], self.config.specs
        weight = weight_of(name, specs, read).cast(layer.spq_dtype)
        key = bias_name(name, specs)
        bias = None if key is None else read.get(key)
        side, share, width = self._share(layer, index, weight.shape)
        if not share:
            return Part(None, None, width)
        if bias is not None:
            bias = bias.to(layer.spq_dtype)
            if side == "rows":
                bias = bias[share.start : share.stop].clone()
            elif layer.tp_rank > 0:  # the sum over processors has it once
                bias = None
        return Part(cut(name, weight, side, share), bias, width)

    def _share(self, layer: Any, index: int, shape: tuple[int, int]) -> tuple[Cut, range, int]:
        """Which rows or columns of a weight are this processor's, and how many outputs follow."""
        rows, columns = shape
        rank, count = layer.tp_rank, layer.tp_size
        block = self.names[index].rpartition(".")[0]
        if isinstance(layer, VocabParallelEmbedding | QKVParallelLinear):
            if index > 0:
                rank //= layer.num_kv_head_replicas
            each = layer.spq_places[index]
            return "rows", places(rows, each, rank), each
        if isinstance(layer, RowParallelLinear):
            each = layer.input_size_per_partition
            if block in self.config.heads:
                return "columns", places(columns, each, rank), rows
            return "columns", self._neurons(index, columns, each, rank, count), rows
        if isinstance(layer, ColumnParallelLinear):
            each = layer.spq_places[index]
            share = self._neurons(index, rows, each, rank, count)
            return "rows", share, each if self.adapters else len(share)
        return "rows", range(rows), rows

    def _neurons(self, index: int, there: int, each: int, rank: int, count: int) -> range:
        name = self.names[index]
        multiple = self.config.neurons_multiple(name, there)
        try:
            share = even(there, multiple, rank, count)
        except ValueError as error:
            raise SpqError(
                f"module {name!r} cannot be shared by tensor parallelism: {error}"
            ) from None
        if self.adapters and share.start != rank * each:
            raise SpqError(
                f"LoRA adapters share the {there} neurons of {name!r} among processors by the "
                "config's size, which it does not have; use one processor, or merge the adapter"
            )
        return share

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """X [..., in] -> [..., out of all modules]; biases are the modules' own."""
        outputs = [shard(x) for shard in layer.spq_shards]
        y = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
        return y if bias is None else y + bias

    def embedding(self, layer: Any, input_ids: Tensor) -> Tensor:
        """Token ids [...] -> rows [..., embedding_dim]."""
        rows = take_rows(stored_weight(layer.spq_shards[0].linear), input_ids.flatten())
        return rows.view(*input_ids.shape, -1)

    def tie_weights(self, layer: Any, embed_tokens: Any) -> Any:
        """The head's parameters become the embedding's, which both then are made of."""
        layer.quant_method = Tied(embed_tokens)
        for part in list(layer._parameters):
            delattr(layer, part)
        layer.register_parameter("bias", None)
        if self.adapters:
            _show_dtype(layer, torch.empty(0, dtype=embed_tokens.spq_dtype))
        return layer


def _show_dtype(layer: nn.Module, nothing: Tensor) -> None:
    """A `weight` without elements: vLLM's layers for LoRA look there for a dtype and a device."""
    layer.register_buffer("weight", nothing, persistent=False)


class Tied(LinearMethodBase):
    """An output layer that multiplies by the embedding's table."""

    def __init__(self, table: Any) -> None:
        """Of vLLM's embedding layer."""
        self.table = table

    def create_weights(self, layer: nn.Module, *sizes: Any, **attributes: Any) -> None:
        """Nothing: there are none of its own."""

    def apply(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """X [..., in] -> [..., vocabulary]."""
        y: Tensor = self.table.quant_method.apply(self.table, x, bias)
        return y
