"""Tiny models with every difference that a server must get right, at sizes that vLLM computes."""

from functools import partial

import torch
from tests.helpers import tiny_model
from transformers import PreTrainedModel

from spqlm.checkpoint.quantizer import attach
from spqlm.formats import Format
from spqlm.formats.group_sparse import of_share
from spqlm.formats.int2 import FORMAT as Int2
from spqlm.formats.int3 import FORMAT as Int3
from spqlm.formats.int4 import Int4
from spqlm.formats.int6 import FORMAT as Int6
from spqlm.formats.int8 import Int8
from spqlm.formats.low_rank import LowRank
from spqlm.model.experts import open_experts
from spqlm.model.tying import retie
from spqlm.model.view import ModelView
from spqlm.modules.linear import CompressedLinear
from spqlm.modules.ops import dense_weight, select, with_weight
from spqlm.numerics.metric import Metric

SIZES = {"hidden_size": 256, "head_dim": 64, "num_attention_heads": 4, "num_key_value_heads": 2}


def stored(model: PreTrainedModel, name: str, form: Format) -> None:
    module = model.get_submodule(name)
    weight = dense_weight(module).float()
    metric = Metric([(torch.eye(weight.shape[1]), torch.ones(weight.shape[0]))], 0.01)
    model.set_submodule(name, with_weight(module, form.fit(weight, metric, "nearest")))


def store_embedding(model: PreTrainedModel, form: Format) -> None:
    """The table, and the head that is tied to it."""
    stored(model, ModelView(model).embedding.name, form)
    if model.config.tie_word_embeddings:
        table = ModelView(model).embedding.module
        model.lm_head = CompressedLinear(table.stored_weight, None)
    retie(model)


def prune_heads(model: PreTrainedModel, layer: int, groups: int) -> None:
    """Keep the first key/value groups and the query heads that belong to them."""
    view = ModelView(model)
    found = view.layers[layer]
    had = found.key_value_groups
    for named, side in found.sides("attention"):
        width = named.module.out_features if side == "output" else named.module.in_features
        kept = torch.arange(width * groups // had)
        model.set_submodule(named.name, select(named.module, side, kept))
    view.layers[layer].settle_heads()


def prune_neurons(model: PreTrainedModel, layer: int, kept: int) -> None:
    for named, side in ModelView(model).layers[layer].sides("mlp"):
        model.set_submodule(named.name, select(named.module, side, torch.arange(kept)))


def mixed() -> PreTrainedModel:
    """Other bits in query, key and value; low rank, dropped groups; and an int6 tied embedding."""
    model = tiny_model("llama", tie_word_embeddings=True, **SIZES)
    one, other = "model.layers.0", "model.layers.1"
    stored(model, f"{one}.self_attn.q_proj", Int4(group_size=32))
    stored(model, f"{one}.self_attn.k_proj", Int8())
    stored(model, f"{one}.self_attn.o_proj", Int3(group_size=32))
    stored(model, f"{one}.mlp.gate_proj", LowRank(rank=32, factor=None))
    stored(model, f"{one}.mlp.down_proj", of_share(256, 128, 16, 4, 0.5))
    stored(model, f"{other}.self_attn.q_proj", LowRank(rank=64, factor=Int8()))
    stored(model, f"{other}.self_attn.v_proj", Int2(group_size=64))
    stored(model, f"{other}.mlp.down_proj", LowRank(rank=64, factor=Int4(group_size=32)))
    store_embedding(model, Int6(group_size=64))
    attach(model)
    return model


def pruned() -> PreTrainedModel:
    """Other widths and heads in each layer, with biases, all of it int8."""
    model = tiny_model("qwen2", tie_word_embeddings=False, **SIZES)
    prune_and_store(model)
    stored(model, "lm_head", Int8())
    store_embedding(model, Int8(granularity="per_tensor"))
    attach(model)
    return model


def opt() -> PreTrainedModel:
    """A block that counts its heads itself; vLLM's has a dense embedding and head."""
    model = tiny_model("opt", tie_word_embeddings=True, word_embed_proj_dim=256, **SIZES)
    prune_and_store(model)
    attach(model)
    return model


def prune_and_store(model: PreTrainedModel) -> None:
    prune_heads(model, 1, 1)
    prune_neurons(model, 0, 96)
    for named in ModelView(model).linears(("attention", "mlp")):
        stored(model, named.name, Int8())


def experts(family: str) -> PreTrainedModel:
    """Experts in formats of their own, one of them dense, and a layer of dense ones."""
    model = tiny_model(family, moe_intermediate_size=64, **SIZES)
    open_experts(model, ["model.layers.0.mlp.experts.down_proj"])
    forms = (Int4(group_size=32), Int8(), LowRank(rank=16, factor=Int8()))
    for named in ModelView(model).layers[0].linears:
        *_, owner, last = named.name.split(".")
        form = forms[int(last) % 3] if last.isdecimal() else Int8()
        if owner != "gate_up_proj" or last != "1":
            stored(model, named.name, form)
    attach(model)
    return model


MODELS = {
    "mixed": mixed,
    "pruned": pruned,
    "opt": opt,
    "qwen3_moe": partial(experts, "qwen3_moe"),
    "mixtral": partial(experts, "mixtral"),
}
