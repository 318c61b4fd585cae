"""The experts of one layer of vLLM, each projection of each expert a weight of its own."""

import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from vllm.config import get_current_vllm_config
from vllm.model_executor.layers.fused_moe import RoutedExperts
from vllm.model_executor.layers.fused_moe.activation import (
    ApplyMoEActivationConfig,
    apply_moe_activation,
)
from vllm.model_executor.layers.fused_moe.config import FUSED_MOE_UNQUANTIZED_CONFIG
from vllm.model_executor.layers.fused_moe.fused_moe_method_base import FusedMoEMethodBase

from spqlm.errors import CheckpointError, SpqError
from spqlm.model.experts import PerExpert, projections
from spqlm.modules.grouped import GroupedProducts
from spqlm.modules.ops import linear_of
from spqlm.serving.shards import bias_name, column_multiple, cut, tensors_of, weight_of
from spqlm.serving.shares import even
from spqlm.serving.vllm_delivery import expect

if TYPE_CHECKING:
    from spqlm.serving.vllm_config import VllmConfig

# What projections are called where vLLM delivers them. Its own names would be taken for those of
# tensors that hold all experts.
PLACES = {"gate_up_proj": "spq_first", "up_proj": "spq_first", "down_proj": "spq_last"}


class ServedExperts(PerExpert):
    """Experts as linear layers, outside of a model of transformers."""

    def __init__(
        self,
        first: list[nn.Module],
        last: list[nn.Module],
        has_gate: bool,
        activate: Callable[[Tensor], Tensor],
    ) -> None:
        """Of what each expert multiplies by.

        Args:
            first: gate and up of each expert in one, or up alone.
            last: down of each expert.
            has_gate: which of the two it is.
            activate: what stands between, [n, out of first] -> [n, in of last].
        """
        super().__init__()
        self.has_gate = has_gate
        for name, linears in zip(projections(self), (first, last), strict=True):
            self.add_module(name, nn.ModuleList(linears))
        self._apply_gate = self.act_fn = activate
        self.grouped_products = GroupedProducts()


class VllmExperts(FusedMoEMethodBase):
    """How the experts of a layer are read, cut and multiplied by.

    Attributes:
        name: of the module that holds the experts.
        read: the tensors of each linear layer, by its name after the module's own.
    """

    def __init__(self, config: "VllmConfig", layer: RoutedExperts, name: str) -> None:
        """See `VllmConfig.get_quant_method`.

        Raises:
            SpqError: vLLM was asked for what is not known of experts.
        """
        super().__init__(layer.moe_config)
        if reason := _refusal(layer):
            raise SpqError(f"the experts of {name!r} are not served so: {reason}")
        self.config = config
        self.name = name
        self.gated = self.moe.is_act_and_mul
        self.activation = ApplyMoEActivationConfig.from_configs(
            self.moe, FUSED_MOE_UNQUANTIZED_CONFIG
        )
        self.read: dict[str, dict[str, Tensor]] = {}

    def get_fused_moe_quant_config(self, layer: nn.Module) -> Any:
        """As of experts in floats: what is quantised is not vLLM's concern."""
        return FUSED_MOE_UNQUANTIZED_CONFIG

    def create_weights(self, layer: Any, num_experts: int, *sizes: Any, **attributes: Any) -> None:
        """Put a parameter of size zero wherever a tensor of the checkpoint will be delivered."""
        layer.spq_dtype = attributes["params_dtype"]
        self.count = num_experts
        for first in (True, False):
            for expert in range(num_experts):
                own = self._linear(first, expert)
                held = self.read[own] = {}
                for part, dtype in self._parts(own, layer.spq_dtype).items():
                    place = _place(f"{own}.{part}")
                    expect(layer, place, dtype, partial(_keep, held, part))
        layer.load_weights = partial(_deliver, layer)

    def _linear(self, first: bool, expert: int) -> str:
        projection = ("gate_up_proj" if self.gated else "up_proj") if first else "down_proj"
        return f"{projection}.{expert}"

    def _parts(self, own: str, dtype: torch.dtype) -> dict[str, torch.dtype]:
        name = f"{self.name}.{own}"
        parts = tensors_of(name, self.config.specs, dtype)
        bias = self._bias(own)
        return parts if bias is None else parts | {bias: dtype}

    def _bias(self, own: str) -> str | None:
        return bias_name(f"{self.name}.{own}", self.config.specs) if self.moe.has_bias else None

    def process_weights_after_loading(self, layer: Any) -> None:
        """Make linear layers of what was read, and forget the places where it was delivered.

        Raises:
            CheckpointError: a tensor is missing, or has another shape than is stated.
            SpqError: several processors cannot share the neurons of an expert.
        """
        if hasattr(layer, "spq_experts"):
            return
        first, last = (
            [self._made(layer, side, expert) for expert in range(self.count)]
            for side in (True, False)
        )
        self.read.clear()
        for place in PLACES.values():
            if hasattr(layer, place):
                delattr(layer, place)
        layer.spq_experts = ServedExperts(first, last, self.gated, self._activated)

    def _made(self, layer: Any, first: bool, expert: int) -> nn.Module:
        """A linear layer with this processor's share of the neurons."""
        own = self._linear(first, expert)
        name, read, specs = f"{self.name}.{own}", self.read[own], self.config.specs
        weight = weight_of(name, specs, read).cast(layer.spq_dtype)
        key = self._bias(own)
        bias = None if key is None else read[key].to(layer.spq_dtype)
        parallel = self.moe.moe_parallel_config
        if parallel.tp_size == 1:
            return linear_of(weight, bias)
        sets = 2 if first and self.gated else 1
        neurons = weight.shape[0 if first else 1] // sets
        multiple = column_multiple(f"{self.name}.{self._linear(False, expert)}", specs)
        try:
            share = even(neurons, multiple, parallel.tp_rank, parallel.tp_size)
        except ValueError as error:
            raise SpqError(f"{name!r} cannot be shared by tensor parallelism: {error}") from None
        if not first:
            # The sum over processors has the bias once.
            bias = bias if parallel.tp_rank == 0 else None
            return linear_of(cut(name, weight, "columns", share), bias)
        rows = [each * neurons + neuron for each in range(sets) for neuron in share]
        bias = None if bias is None else bias[rows]
        return linear_of(cut(name, weight, "rows", rows), bias)

    def _activated(self, x: Tensor) -> Tensor:
        """[n, gate and up] -> [n, neurons], as vLLM's kernels compute it."""
        out = x.new_empty(len(x), x.shape[1] // (2 if self.gated else 1))
        return apply_moe_activation(self.moe.activation, out, x, activation_config=self.activation)

    def apply(
        self,
        layer: Any,
        x: Tensor,
        topk_weights: Tensor,
        topk_ids: Tensor,
        *shared: Any,
        **named: Any,
    ) -> Tensor:
        """X [tokens, hidden] -> [tokens, hidden], of the experts [tokens, k] that count so much."""
        y: Tensor = layer.spq_experts(x, topk_ids, topk_weights)
        return y


def _refusal(layer: RoutedExperts) -> str | None:
    """What vLLM was asked for, or the model wants, that ours has not."""
    config, moe = get_current_vllm_config(), layer.moe_config
    if layer.apply_router_weight_on_input:
        return "what enters them counts by what the router says, which ours do not know"
    if moe.moe_parallel_config.use_ep:
        return "leave out --enable-expert-parallel; tensor parallelism works"
    if config.lora_config is not None:
        return "merge the LoRA adapter; with experts vLLM can add none"
    if torch.device(moe.device).type == "cuda" and not config.model_config.enforce_eager:
        return "no CUDA graph records which experts tokens choose; add --enforce-eager"
    return None


def renamed(layer: RoutedExperts, name: str, ours: bool) -> dict[str, str]:
    """Patterns for the tensors of a layer's experts, by what vLLM delivers them as.

    Args:
        layer: of vLLM.
        name: of the module that holds the experts.
        ours: whether each projection of each expert is a weight of its own; else all of them are
            in one, which some of vLLM's models know by an earlier name.
    """
    module = f"^({re.escape(name)})"
    if ours:
        return {rf"{module}\.{own}\.": rf"\1.routed_experts.{new}." for own, new in PLACES.items()}
    first = {"w1": "w13"}.get(layer.ckpt_gate_proj_name, "gate_up_proj")
    names = {"gate_up_proj": first, "down_proj": layer.ckpt_down_proj_name}
    return {rf"{module}\.{own}$": rf"\1.{new}" for own, new in names.items()}


def _place(part: str) -> str:
    """Where vLLM delivers a tensor of ours, after the module's own name."""
    projection, _, rest = part.partition(".")
    return f"{PLACES[projection]}.{rest}"


def _keep(held: dict[str, Tensor], part: str, parameter: nn.Parameter, loaded: Tensor) -> None:
    # A copy: what is mapped from a file may lie anywhere, and would keep the file open.
    held[part] = loaded.to(parameter.device, copy=True)


def _deliver(layer: Any, weights: Iterable[tuple[str, Tensor]]) -> Iterator[str]:
    """In place of vLLM's `load_weights`, which knows tensors of its own names."""
    for name, loaded in weights:
        part = name.removeprefix("routed_experts.")
        try:
            parameter = layer.get_parameter(part)
        except AttributeError:
            raise CheckpointError(
                f"tensor {name!r} of {layer.layer_name!r} is not what quantization_config states"
            ) from None
        parameter.weight_loader(parameter, loaded)
        yield part
