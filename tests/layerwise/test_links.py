"""What writes the channels that a linear layer reads."""

import pytest
import torch
from tests.helpers import tiny_model
from tests.layerwise.forward import linear_inputs, random_windows

from spqlm.layerwise.links import Entered, links
from spqlm.layerwise.loop import LayerLoop
from spqlm.model.experts import open_experts
from spqlm.model.view import ModelView
from spqlm.stages.quantize import Quantize

LLAMA = {
    "input_layernorm": (["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], 1),
    "post_attention_layernorm": (["mlp.gate_proj", "mlp.up_proj"], 1),
    "self_attn.v_proj": (["self_attn.o_proj"], 16),
    "mlp.up_proj": (["mlp.down_proj"], 128),
}
PHI3 = {
    "input_layernorm": (["self_attn.qkv_proj"], 1),
    "post_attention_layernorm": (["mlp.gate_up_proj"], 1),
}
OLMO2 = {key: LLAMA[key] for key in ("self_attn.v_proj", "mlp.up_proj")}
COHERE2 = {
    "input_layernorm": (LLAMA["input_layernorm"][0] + LLAMA["post_attention_layernorm"][0], 1),
    **OLMO2,
}
OPT = {
    "self_attn_layer_norm": (["self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj"], 1),
    "final_layer_norm": (["fc1"], 1),
    "self_attn.v_proj": (["self_attn.out_proj"], 16),
    "fc1": (["fc2"], 128),
}
MIXTRAL = {key: LLAMA[key] for key in ("input_layernorm", "self_attn.v_proj")}
EXPECTED = {
    "llama": LLAMA,
    "qwen3": LLAMA,
    "phi3": PHI3,
    "olmo2": OLMO2,
    "cohere2": COHERE2,
    "opt": OPT,
    "mixtral": MIXTRAL,
}


def seen(model, windows):
    """The first layer, and what entered its linear layers."""
    view = ModelView(model)
    step = next(iter(LayerLoop(view, windows, "looking")))
    entered = Entered()
    with entered.watching(view, step.layer):
        step.observe(entered)
    return view, step.layer, entered


@pytest.mark.parametrize("model_type", EXPECTED)
def test_norms_are_found_by_what_they_give(model_type):
    model = tiny_model(model_type)
    open_experts(model)
    view, layer, entered = seen(model, random_windows(3))
    found = {
        link.writer.removeprefix(f"{layer.name}."): (
            [named.name.removeprefix(f"{layer.name}.") for named in link.readers],
            link.width,
        )
        for link in links(view, layer, entered)
    }
    expected = EXPECTED[model_type]
    assert {key: (sorted(read), width) for key, (read, width) in found.items()} == {
        key: (sorted(read), width) for key, (read, width) in expected.items()
    }


def test_the_largest_of_what_enters_is_kept():
    model, windows = tiny_model(), random_windows(5)
    _, layer, entered = seen(model, windows)
    for name, inputs in linear_inputs(model, windows).items():
        if name.startswith(layer.name):
            assert torch.allclose(entered.largest[name], inputs.abs().amax((0, 1)), atol=1e-5)


def test_integers_are_no_part_of_a_link():
    model = tiny_model()
    view = ModelView(model)
    stage = Quantize(modules=("mlp",))
    stage.apply(view, stage.plan(view, None))
    view, layer, entered = seen(model, random_windows(2))
    writers = [link.writer.rpartition(".")[2] for link in links(view, layer, entered)]
    assert writers == ["input_layernorm", "v_proj"]


def test_nothing_is_watched_afterwards():
    view, layer, _ = seen(tiny_model(), random_windows(2))
    assert not any(m._forward_hooks for m in view.module(layer.name).modules())


def test_some_tokens_are_kept_and_readers_of_the_same_rows_share_them():
    model, windows = tiny_model(), random_windows(4, 24)
    step = next(iter(LayerLoop(ModelView(model), windows, "looking")))
    entered = Entered(every=7)
    step.observe(entered)
    rows = linear_inputs(model, windows)
    for named in step.layer.linears:
        places, kept = entered.sample(named.name)
        assert places.tolist() == list(range(0, 96, 7))
        assert torch.equal(kept, rows[named.name].flatten(0, -2)[places].float())
    query, key = (entered.kept[named.name][0] for named in (step.layer.query, step.layer.key))
    assert query[1] is key[1]
    assert Entered().kept == {}
