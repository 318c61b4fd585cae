import pytest
import torch
from tests.helpers import tiny_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from spqlm.errors import SpqError
from spqlm.model.discovery import layers_name
from spqlm.model.experts import open_experts
from spqlm.model.view import ModelView


@pytest.mark.parametrize(
    ("model_type", "name"),
    [
        ("llama", "model.layers"),
        ("opt", "model.decoder.layers"),
        ("gpt_neox", "gpt_neox.layers"),
        ("falcon", "transformer.h"),
        ("nemotron_h", "model.layers"),
    ],
)
def test_the_decoder_layers_are_the_longest_list_of_blocks(model_type, name):
    assert layers_name(tiny_model(model_type)) == name


def test_experts_in_a_list_are_no_layers():
    model = tiny_model("qwen3_moe", num_hidden_layers=1, num_experts=8, num_local_experts=8)
    open_experts(model)
    assert layers_name(model) == "model.layers"
    assert len(ModelView(model).layers) == 1


def test_a_model_without_layers_is_refused():
    model = tiny_model()
    model.model.layers = nn.ModuleDict()
    with pytest.raises(SpqError, match="LlamaForCausalLM has no list of decoder layers"):
        layers_name(model)


@pytest.mark.parametrize("model_type", ["qwen3_moe", "qwen3_next", "deepseek_v3", "gpt_oss"])
def test_routers_are_left_alone_and_everything_else_is_found(model_type):
    model = tiny_model(model_type)
    open_experts(model)
    found = {named.name for layer in ModelView(model).layers for named in layer.linears}
    every = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name != "lm_head"
    }
    assert every - found == {name for name in every if name.endswith("shared_expert_gate")}
    assert sum(".experts." in name for name in found) == 8 * sum(
        hasattr(layer.mlp, "experts") for layer in model.model.layers
    )


@pytest.mark.parametrize(
    ("model_type", "roles"),
    [
        ("qwen3_moe", {"self_attn": "attention", "mlp": "mlp"}),
        ("opt", {"self_attn": "attention", "fc1": "mlp", "fc2": "mlp"}),
        ("lfm2", {"self_attn": "attention", "conv": "attention", "feed_forward": "mlp"}),
        ("gpt_neox", {"attention": "attention", "mlp": "mlp"}),
    ],
)
def test_a_projection_has_the_role_of_the_block_that_it_is_in(model_type, roles):
    model = tiny_model(model_type)
    open_experts(model)
    for layer in ModelView(model).layers:
        for named in layer.linears:
            block = named.name.removeprefix(f"{layer.name}.").split(".")[0]
            assert named.role == roles[block]


def test_blocks_of_nemotron_differ_from_layer_to_layer():
    model = tiny_model("nemotron_h")
    open_experts(model)
    roles = [{named.role for named in layer.linears} for layer in ModelView(model).layers]
    assert roles == [{"attention"}, {"mlp"}, {"attention"}, {"mlp"}]
    prunable = [
        [unit for unit in ("mlp", "attention") if layer.prunable(unit)]
        for layer in ModelView(model).layers
    ]
    assert prunable == [[], [], ["attention"], ["mlp"]]


def test_the_last_projection_that_all_tokens_pass_writes_the_layers_output():
    model = tiny_model("deepseek_v3")
    open_experts(model)
    names = [layer.writer.name for layer in ModelView(model).layers]
    assert names == ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.shared_experts.down_proj"]
    model = tiny_model("qwen3_moe")
    open_experts(model)
    assert ModelView(model).layers[0].writer.name == "model.layers.0.self_attn.o_proj"


class Odd(nn.Module):
    """Multiplies by a matrix, and is no linear layer."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, 2))


def test_what_holds_the_weights_is_named_where_no_linear_layer_does():
    model = tiny_model("gpt2")
    for name, module in list(model.named_modules()):
        if isinstance(module, Conv1D):
            model.set_submodule(name, Odd())
    with pytest.raises(SpqError, match=r"no list of decoder layers .* its weights are in Odd;"):
        layers_name(model)


def test_layers_whose_weights_are_transposed_are_found():
    assert layers_name(tiny_model("gpt2")) == "transformer.h"
