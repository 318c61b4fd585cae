"""Norms and gates of a transformers model in one pass over memory, where no gradients are needed.

Eager PyTorch takes six passes for a norm and two for a gate, which costs a small model, whose
products are short, several percent of the time of a prompt (docs/kernel-measurements.md).
"""

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from spqlm.kernels.product import needs_gradient
from spqlm.model.mixins import Mixin, add_mixin
from spqlm.modules.ops import watched
from spqlm.native import elementwise


class FusedNorm(Mixin, nn.Module):
    """RMSNorm of Llama's kind, summed in float32 and rounded once."""

    weight: Tensor
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Any:
        """As the norm's own: [..., width] in and out."""
        if not needs_gradient(hidden_states, self.weight):
            y = elementwise.normalize(hidden_states, self.weight, self.variance_epsilon)
            if y is not None:
                return y
        return super().forward(hidden_states)


class FusedGate(Mixin, nn.Module):
    """MLP of Llama's kind, whose gate is rounded once."""

    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module
    act_fn: nn.Module

    def forward(self, x: Tensor) -> Any:
        """As the MLP's own: [..., hidden_size] in and out."""
        gate, up = self.gate_proj(x), self.up_proj(x)
        plain = needs_gradient(gate, up) or watched(self.act_fn)
        gated = None if plain else elementwise.gated(gate, up)
        return self.down_proj(self.act_fn(gate) * up if gated is None else gated)


def fuse(model: PreTrainedModel) -> None:
    """Let the norms and MLPs of a model that decodes natively run so; it stays the same object."""
    inner: Any = model.get_submodule("model")
    for layer in inner.layers:
        add_mixin(layer.input_layernorm, FusedNorm)
        add_mixin(layer.post_attention_layernorm, FusedNorm)
        add_mixin(layer.mlp, FusedGate)
        for name in ("q_norm", "k_norm"):
            if getattr(layer.self_attn, name, None) is not None:
                add_mixin(getattr(layer.self_attn, name), FusedNorm)
    add_mixin(inner.norm, FusedNorm)
