"""A transformers model as the native decode step sees it."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from spqlm import native
from spqlm.kernels.weights import matrix_of
from spqlm.model.families import family_for, known
from spqlm.model.view import LayerView, ModelView
from spqlm.modules.low_rank_linear import LowRankLinear
from spqlm.modules.ops import embed_scale, plain, stored_weight, watched
from spqlm.native import decoder

CHANGING_ROTARY = ("dynamic", "longrope")
"""Kinds of rotary embedding whose angles depend on the length of the text."""

_FOREIGN = "a weight is not on the CPU, not contiguous, or in a format without native kernels"


class Unsuitable(Exception):
    """Why a model cannot be decoded natively."""


class _Builder:
    """Takes addresses, and holds on to the tensors they belong to."""

    def __init__(self) -> None:
        self.held: list[Tensor] = []

    def float32(self, weight: Tensor) -> Tensor:
        copy = weight.detach().to(torch.float32).contiguous()
        self.held.append(copy)
        return copy

    def matrix(self, module: nn.Module) -> native.Matrix:
        """The weight of a linear layer or an embedding, and its bias."""
        _check_plain(module)
        if not plain(module):
            raise Unsuitable(f"{type(module).__name__} is not a layer that the kernels know")
        weight, bias = stored_weight(module), getattr(module, "bias", None)
        found = matrix_of(weight, bias)
        if found is None:
            raise Unsuitable(_FOREIGN)
        # Another view of the same memory, which stays even if the parameter is given other data.
        held = [part for part in (*found.kept, bias) if isinstance(part, Tensor)]
        self.held += [part.detach() for part in held]
        return found

    def linear(self, module: nn.Module) -> decoder.Linear:
        if isinstance(module, LowRankLinear):
            _check_plain(module)
            return decoder.Linear(self.matrix(module.left), self.matrix(module.right))
        return decoder.Linear(self.matrix(module))

    def embedding(self, module: nn.Module) -> native.Matrix:
        if embed_scale(module) != 1.0:
            raise Unsuitable("the rows of the embedding are scaled")
        return self.matrix(module)

    def layer(self, view: LayerView, module: Any, config: Any) -> decoder.Layer:
        attention = module.self_attn
        gate, up = view.mlp_inputs
        for part in (module, attention, module.mlp):
            _check_plain(part)
        names = ("input_layernorm", "post_attention_layernorm")
        norms = [self.norm(getattr(module, name), config.hidden_size) for name in names]
        per_head = [
            self.norm(norm, view.head_dim) if norm is not None else None
            for norm in (getattr(attention, "q_norm", None), getattr(attention, "k_norm", None))
        ]
        window = getattr(attention, "sliding_window", getattr(config, "sliding_window", None))
        layer = decoder.Layer(
            *(self.linear(part.module) for part in (view.query, view.key, view.value)),
            self.linear(view.attention_output.module),
            *(self.linear(part.module) for part in (gate, up, view.mlp_output)),
            *(None if norm is None else norm.data_ptr() for norm in (*norms, *per_head)),
            None,
            None,
            view.query_heads,
            view.key_value_groups,
            window or 0,
        )
        _check_shapes(layer, view.head_dim, config.hidden_size)
        return layer

    def norm(self, module: Any, size: int) -> Tensor:
        _check_plain(module)
        if module.weight.shape != (size,):
            raise Unsuitable(f"a norm has {module.weight.numel()} weights, not {size}")
        return self.float32(module.weight)


def build(model: PreTrainedModel) -> decoder.Program:
    """Describe a model to the native library.

    Raises:
        Unsuitable: it cannot be decoded natively, and why.
    """
    library = native.library()
    if library is None:
        raise Unsuitable("the native kernels are not there")
    view, config = _check_model(model)
    builder = _Builder()
    inner: Any = view.model.get_submodule("model")
    modules = list(inner.layers)
    for part in (inner, inner.rotary_emb):
        _check_plain(part)
    layers = [
        builder.layer(layer, module, config)
        for layer, module in zip(view.layers, modules, strict=True)
    ]
    embedding = builder.embedding(view.embedding.module)
    head = builder.linear(view.lm_head.module)
    if embedding.columns != config.hidden_size or not _fits(
        head, embedding.rows, embedding.columns
    ):
        raise Unsuitable("the embedding and the output projection have other shapes than stated")
    return decoder.program(
        library,
        layers,
        norm=builder.norm(inner.norm, config.hidden_size),
        embedding=embedding,
        head=head,
        head_width=view.head_dim,
        epsilon=config.rms_norm_eps,
        attention_scale=modules[0].self_attn.scaling,
        dtype=model.dtype,
        held=builder.held,
    )


def decodes(model: PreTrainedModel) -> bool:
    """Whether models like this one are decoded natively, whatever is in their layers."""
    try:
        _check_model(model)
    except Unsuitable:
        return False
    return native.library() is not None


def _check_model(model: PreTrainedModel) -> tuple[ModelView, Any]:
    config = model.config
    if not family_for(config.model_type).native:
        native_ones = ", ".join(name for name in known() if family_for(name).native)
        raise Unsuitable(f"only {native_ones} are supported, not {config.model_type}")
    if config.hidden_act != "silu":
        raise Unsuitable(f"the activation is {config.hidden_act}, not silu")
    if config.rope_parameters.get("rope_type") in CHANGING_ROTARY:
        raise Unsuitable("the rotary embedding changes with the length of the text")
    if model.dtype not in native.FLOATS:
        raise Unsuitable(f"the dtype is {model.dtype}")
    view = ModelView(model)
    if view.head_dim % 2 or view.head_dim > decoder.WIDEST_HEAD:
        raise Unsuitable(f"attention heads are {view.head_dim} wide")
    return view, config


def _fits(linear: decoder.Linear, rows: int, columns: int) -> bool:
    outer, inner = linear.outer, linear.inner
    if inner.rows and (inner.rows, inner.columns) != (outer.columns, columns):
        return False
    return outer.rows == rows and (inner.rows > 0 or outer.columns == columns)


def _check_shapes(layer: decoder.Layer, width: int, hidden: int) -> None:
    """Every size that the native step relies on: it would read and write beyond a wrong one."""
    queries, keys = layer.query_heads * width, layer.key_heads * width
    neurons = layer.gate.outer.rows
    sound = (
        layer.key_heads > 0
        and layer.query_heads % layer.key_heads == 0
        and _fits(layer.query, queries, hidden)
        and _fits(layer.key, keys, hidden)
        and _fits(layer.value, keys, hidden)
        and _fits(layer.output, hidden, queries)
        and _fits(layer.gate, neurons, hidden)
        and _fits(layer.up, neurons, hidden)
        and _fits(layer.down, hidden, neurons)
    )
    if not sound:
        raise Unsuitable("the projections of a layer do not fit together")


def _check_plain(module: nn.Module) -> None:
    """Refuse a module that somebody watches or has changed: that would go unnoticed."""
    if watched(module):
        raise Unsuitable(f"a {type(module).__name__} has hooks or another forward")


def rotary_table(model: PreTrainedModel, length: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the rotary embedding, rounded as the model rounds them.

    Returns:
        float32 [length, head width] each.

    Raises:
        Unsuitable: not all columns of a head are rotated.
    """
    inner: Any = model.get_submodule("model")
    like = torch.empty(0, dtype=model.dtype)
    cosine, sine = inner.rotary_emb(like, torch.arange(length)[None])
    if cosine.shape != (1, length, ModelView(model).head_dim):
        raise Unsuitable("the rotary embedding does not cover whole heads")
    return cosine[0].float().contiguous(), sine[0].float().contiguous()
