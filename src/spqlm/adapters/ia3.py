"""IA3 (arXiv 2205.05638) of peft on a compressed linear layer."""

from typing import Any

from peft.tuners.ia3 import layer as ia3
from torch import nn

from spqlm.adapters import base
from spqlm.modules.ops import dense_weight


class IA3CompressedLinear(base.Adapted, ia3.Linear):
    """A trained factor on each input (feed-forward layers) or output of a frozen layer."""

    carried = "ia3_l"

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

    def merge_into(self, layer: base.Linear, adapter: str) -> None:
        """Multiply the weight by the factors and round it to nearest."""
        factor = self.ia3_l[adapter].detach().float()
        merged = dense_weight(layer).float() * factor
        base.check_finite(merged, adapter)
        base.store(layer, base.rounded(layer, merged))
        if not self.is_feedforward:
            base.scale_bias(layer, factor.flatten())
