"""What a family states about its models."""

from dataclasses import dataclass, field


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
    """

    inputs: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    scored: str = "mlp.up_proj"
    output: str = "mlp.down_proj"


@dataclass(frozen=True)
class Family:
    """Where the parts of a causal language model are. Defaults are Llama's.

    Attributes:
        layers: path of the list of decoder layers.
        embedding: path of the token embedding.
        lm_head: path of the output projection.
        intermediate_size: the config's name for the MLP's width.
        attention: paths inside a layer.
        mlp: paths inside a layer.
    """

    layers: str = "model.layers"
    embedding: str = "model.embed_tokens"
    lm_head: str = "lm_head"
    intermediate_size: str = "intermediate_size"
    attention: Attention = field(default_factory=Attention)
    mlp: Mlp = field(default_factory=Mlp)
