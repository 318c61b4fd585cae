"""LoRA (arXiv 2106.09685) and DoRA (arXiv 2402.09353) of peft on a compressed linear layer."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import layer as lora
from peft.tuners.lora.variants import DoraLinearVariant
from torch import Tensor, nn

from spqlm.adapters import base
from spqlm.errors import SpqError
from spqlm.modules.ops import dense_weight, stored_weight

# Ways to start an adapter that leave the base weight alone and do not look at it.
STARTS = (True, False, "gaussian", "eva")


class LoraCompressedLinear(base.Adapted, lora.Linear):
    """The adapter beside a frozen compressed layer; merging puts it into the codes."""

    carried = "lora_A"

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: Any, **options: Any):
        """See `peft.tuners.lora.layer.Linear`.

        Raises:
            SpqError: `init_lora_weights` needs to read or change the base weight.
        """
        config.fan_in_fan_out = False
        super().__init__(base_layer, adapter_name, config=config, **options)

    def update_layer(self, adapter_name: str, *args: Any, config: Any, **options: Any) -> None:
        """Add an adapter."""
        if config.init_lora_weights not in STARTS:
            raise SpqError(
                f"init_lora_weights={config.init_lora_weights!r} rewrites the base weight, which "
                "is stored in codes here; leave it at True"
            )
        super().update_layer(adapter_name, *args, config=config, **options)

    def _get_in_out_features(self, module: nn.Module) -> tuple[Any, Any]:
        return module.in_features, module.out_features

    @property
    def lora_variants(self) -> dict[tuple[str, ...], type | None]:
        """Plain LoRA and DoRA."""
        return {(): None, ("use_dora",): _Dora}

    def merge_into(self, layer: base.Linear, adapter: str) -> None:
        """LoRA rounds at random, so that small updates survive; DoRA rounds to nearest.

        Raises:
            SpqError: the adapter has a bias, which the layer may have no place for.
        """
        if self.lora_bias[adapter]:
            raise SpqError("an adapter with lora_bias=True cannot be merged")
        delta = self.get_delta_weight(adapter).float()
        base.check_finite(delta, adapter)
        if adapter in self.lora_variant:
            magnitude = self.lora_magnitude_vector[adapter]
            weight = dense_weight(layer).float()
            norm = magnitude.get_weight_norm(weight, delta, scaling=1)
            merged = (magnitude.weight / norm).view(-1, 1) * (weight + delta)
            base.store(layer, base.rounded(layer, merged))
        else:
            generator = torch.Generator(delta.device).manual_seed(0)
            base.store(layer, stored_weight(layer).detach().absorb(delta, generator))


class _Dora(DoraLinearVariant):
    """DoRA, which needs the norm of the weight's rows, over codes."""

    @staticmethod
    def init(module: Any, adapter_name: str, **options: Any) -> None:
        """Magnitudes start as the norms of the rows."""
        with _dense_base(module):
            DoraLinearVariant.init(module, adapter_name, **options)

    @staticmethod
    def forward(module: Any, active_adapter: str, x: Tensor, result: Tensor, **_: Any) -> Tensor:
        """What the layer gives with the adapter."""
        with _dense_base(module):
            found: Tensor = DoraLinearVariant.forward(module, active_adapter, x, result)
            return found


@contextmanager
def _dense_base(module: LoraCompressedLinear) -> Iterator[None]:
    """While peft's formulas read `weight` of the base layer: it has one."""
    dense = base.as_dense(module.get_base_layer())
    module.__dict__["get_base_layer"] = lambda: dense
    try:
        yield
    finally:
        del module.__dict__["get_base_layer"]
