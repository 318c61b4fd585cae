import pytest
import torch
from tests.helpers import logits, tiny_model
from torch import nn

from spqlm.formats.int8 import Int8
from spqlm.model.experts import (
    PerExpert,
    close_experts,
    is_expert,
    open_experts,
    routed_rows,
    shown_all_tokens,
)
from spqlm.modules.ops import with_weight

# Plain, with a shared expert, transposed with biases and an interleaved gate, without a gate.
MIXTURES = ("qwen3_moe", "deepseek_v3", "gpt_oss", "nemotron_h")


def experts(model):
    return [module for module in model.modules() if isinstance(module, PerExpert)]


@pytest.mark.parametrize("model_type", MIXTURES)
def test_experts_as_linear_layers_compute_the_same_and_go_back(model_type):
    model = tiny_model(model_type)
    expected, before = logits(model), {n: p.clone() for n, p in model.named_parameters()}
    open_experts(model)
    assert experts(model) and not any(
        p.ndim == 3 for n, p in model.named_parameters() if "conv" not in n
    )
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)
    close_experts(model)
    assert not experts(model)
    after = dict(model.named_parameters())
    assert set(after) == set(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=0)


def test_opened_experts_take_no_memory_of_their_own():
    model = tiny_model("qwen3_moe")
    packed = model.model.layers[0].mlp.experts.down_proj
    open_experts(model)
    linears = model.model.layers[0].mlp.experts.down_proj
    storages = {linear.weight.untyped_storage().data_ptr() for linear in linears}
    assert storages == {packed.untyped_storage().data_ptr()}


def test_where_some_experts_are_compressed_the_others_get_memory_of_their_own():
    model = tiny_model("qwen3_moe")
    open_experts(model)
    linears = model.model.layers[0].mlp.experts.down_proj
    linears[1] = with_weight(linears[1], Int8().nearest(linears[1].weight.detach()))
    expected = logits(model)
    close_experts(model)
    [left] = experts(model)
    dense = [linear for linear in left.down_proj if isinstance(linear, nn.Linear)]
    assert len(dense) == 3
    assert all(linear.weight.untyped_storage().nbytes() == linear.weight.nbytes for linear in dense)
    assert torch.equal(logits(model), expected)


def test_a_hook_is_told_which_tokens_reached_an_expert():
    model = tiny_model("qwen3_moe")
    open_experts(model)
    block, seen = model.model.layers[0].mlp, {}

    def hook(linear, inputs):
        seen[list(block.experts.gate_up_proj).index(linear)] = routed_rows(), inputs[0]

    for linear in block.experts.gate_up_proj:
        linear.register_forward_pre_hook(hook)
    states = torch.randn(1, 9, 64)
    block(states)
    _, _, index = block.gate(states.view(-1, 64))
    for expert, (tokens, rows) in seen.items():
        assert tokens.tolist() == (index == expert).any(1).nonzero()[:, 0].tolist()
        assert torch.equal(rows, states[0, tokens])
    assert routed_rows() is None


def test_an_expert_that_is_shown_all_tokens_leaves_the_output_alone():
    model = tiny_model("qwen3_moe")
    open_experts(model)
    block, seen = model.model.layers[0].mlp, []
    states = torch.randn(1, 2, 64)
    expected = block(states)
    _, _, index = block.gate(states.view(-1, 64))
    unreached = next(e for e in range(4) if e not in set(index.flatten().tolist()) or e == 3)
    linear = block.experts.down_proj[unreached]
    linear.register_forward_pre_hook(lambda _, inputs: seen.append((routed_rows(), inputs[0])))
    with shown_all_tokens({linear}):
        torch.testing.assert_close(block(states), expected)
    [(tokens, rows)] = seen
    assert tokens is None and rows.shape == (2, 32)


def test_only_what_is_inside_experts_is_an_expert():
    model = tiny_model("deepseek_v3")
    open_experts(model)
    assert is_expert(model, "model.layers.1.mlp.experts.down_proj.3")
    assert not is_expert(model, "model.layers.1.mlp.shared_experts.down_proj")
    assert not is_expert(model, "model.layers.0.mlp.down_proj")
