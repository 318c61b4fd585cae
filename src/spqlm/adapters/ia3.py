"""IA3 (arXiv 2205.05638) of peft on a compressed linear layer."""

from typing import Any

import torch
from peft.tuners.ia3 import layer as ia3
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import nn

from spqlm.adapters import base


class IA3CompressedLinear(ia3.Linear):
    """A trained factor on each input (feed-forward layers) or output of a frozen layer."""

    def __init__(
        self,
        base_layer: nn.Module,
        adapter_name: str,
        config: Any,
        is_feedforward: bool = False,
        **_: Any,
    ):
        """See `peft.tuners.ia3.layer.Linear`, whose constructor knows layers of PyTorch only."""
        nn.Module.__init__(self)
        self.base_layer = base_layer
        self.in_features, self.out_features = base_layer.in_features, base_layer.out_features
        self.ia3_l = nn.ParameterDict({})
        self.is_feedforward = is_feedforward
        self.fan_in_fan_out = self.is_target_conv_1d_layer = False
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config=config)

    def _get_base_layer_device_and_dtype(self, base_layer: Any) -> Any:
        return base.device_and_dtype(base_layer)

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Multiply the weight by the factors and round it to nearest.

        Raises:
            SpqError: the format cannot take up an update.
        """
        for adapter in check_adapters_to_merge(self, adapter_names):
            if adapter not in self.ia3_l:
                continue
            layer = self.get_base_layer()
            base.refuse_merge({"the layer": layer})
            factor = self.ia3_l[adapter].detach().float()
            merged = base.as_dense(layer).weight.float() * factor
            base.check_finite(merged, adapter)
            base.store(layer, base.rounded(layer, merged))
            if not self.is_feedforward:
                base.scale_bias(layer, factor.flatten())
            self.merged_adapters.append(adapter)

    def unmerge(self) -> None:
        """Refused; see `refuse_unmerge`."""
        if self.merged:
            base.refuse_unmerge()
