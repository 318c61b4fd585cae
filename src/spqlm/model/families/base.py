"""What a family states about its models."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

# Whose units can be pruned: MLP neurons, and attention heads by whole key/value groups.
Prunable = Literal["mlp", "attention"]


@dataclass(frozen=True)
class Attention:
    """Paths of the attention projections, relative to a decoder layer.

    Attributes:
        module: the attention block itself.
        query: projection to the query heads.
        key: projection to the key/value heads.
        value: projection to the key/value heads.
        output: projection back to the hidden size.
    """

    module: str = "self_attn"
    query: str = "self_attn.q_proj"
    key: str = "self_attn.k_proj"
    value: str = "self_attn.v_proj"
    output: str = "self_attn.o_proj"


@dataclass(frozen=True)
class Mlp:
    """Paths of the MLP projections, relative to a decoder layer.

    Attributes:
        inputs: projections from the hidden size; row j of each belongs to neuron j.
        scored: the input projection whose output measures a neuron's activation.
        output: projection back to the hidden size; column j belongs to neuron j.
        size: the config's field that states how many neurons there are.
    """

    inputs: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    scored: str = "mlp.up_proj"
    output: str = "mlp.down_proj"
    size: str = "intermediate_size"


@dataclass(frozen=True)
class Family:
    """What is known of a type of model beyond what looking at it tells. Paths are Llama's.

    A layer that does not have all paths of a block does not have that block: layers of a hybrid
    differ, and so do those of a mixture of experts.

    Attributes:
        prunes: blocks whose projections may be cut together.
        native: whether a token is decoded in one native call.
        attention: paths inside a layer.
        mlp: paths inside a layer.
        whole: why blocks that are not in `prunes` stay whole, in words.
        small: fields of the config of a small model to try the family on, beside those that every
            config has, see `small.py`; None as the value of one leaves it out.
    """

    prunes: tuple[Prunable, ...] = ("mlp", "attention")
    native: bool = False
    attention: Attention = field(default_factory=Attention)
    mlp: Mlp = field(default_factory=Mlp)
    whole: str = ""
    small: Mapping[str, Any] = field(default_factory=dict)


# Of small mixtures of experts; a config takes those that it has.
FEW_EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}
