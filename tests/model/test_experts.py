import copy

import pytest
import torch
from tests.helpers import logits, tiny_model
from torch import nn

from spqlm import native
from spqlm.formats.int4 import Int4
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
from spqlm.numerics.metric import Metric

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


def compressed(model_type, dtype=torch.bfloat16):
    """One with every expert in int4 and int8 in turn."""
    model = tiny_model(model_type, dtype=dtype)
    open_experts(model)
    for block in experts(model):
        for linears in block.children():
            if isinstance(linears, nn.ModuleList):
                for place, linear in enumerate(linears):
                    form = (Int4(group_size=32), Int8())[place % 2]
                    rows, columns = linear.weight.shape
                    metric = Metric([(torch.eye(columns), torch.ones(rows))])
                    stored = form.fit(linear.weight.detach().float(), metric, "nearest")
                    linears[place] = with_weight(linear, stored.cast(dtype))
    return model


def one_by_one(monkeypatch):
    """Have every product be a call of its own."""
    monkeypatch.setattr(native, "linear_each", lambda *_: None)


@pytest.mark.parametrize("model_type", MIXTURES)
@pytest.mark.parametrize("tokens", [1, 5, 16])
def test_experts_of_few_tokens_are_two_calls_and_the_same_numbers(
    library, monkeypatch, model_type, tokens
):
    model, called = compressed(model_type), []
    states = torch.randn(1, tokens, 64, dtype=torch.bfloat16)
    block = experts(model)[0]
    index = torch.stack([torch.randperm(4)[:2] for _ in range(tokens)])
    arguments = states[0], index, torch.rand(tokens, 2, dtype=torch.bfloat16)
    usual = native.linear_each
    monkeypatch.setattr(native, "linear_each", lambda *a: called.append(a) or usual(*a))
    with torch.no_grad():
        found = block(*arguments)
        assert len(called) == 2
        one_by_one(monkeypatch)
        assert torch.equal(block(*arguments), found)


def test_experts_are_called_one_by_one_where_somebody_would_notice(library, monkeypatch):
    model, seen = compressed("qwen3_moe"), []
    [block] = experts(model)[:1]
    index, weights = torch.tensor([[0, 2]]), torch.ones(1, 2, dtype=torch.bfloat16)
    states = torch.randn(1, 64, dtype=torch.bfloat16)
    with torch.no_grad():
        expected = block(states, index, weights)
        handle = block.down_proj[2].register_forward_hook(lambda *_: seen.append(1))
        assert torch.equal(block(states, index, weights), expected)
        assert seen == [1]
        handle.remove()
        block.down_proj[2].scale.data = block.down_proj[2].scale.data * 2
        changed = block(states, index, weights)
        one_by_one(monkeypatch)
        assert torch.equal(block(states, index, weights), changed)
    assert not torch.equal(changed, expected)


def test_what_a_router_says_of_tokens_that_go_nowhere_is_passed_over(library):
    [block] = experts(compressed("qwen3_moe"))[:1]
    states, weights = torch.randn(2, 64).bfloat16(), torch.ones(2, 2).bfloat16()
    with torch.no_grad():
        alone = block(states, torch.tensor([[1, 4], [0, 4]]), weights)
        one = block(states[:1], torch.tensor([[1]]), weights[:1, :1])
    assert torch.equal(alone[:1], one)


def test_a_copy_knows_nothing_of_where_the_weights_were(library):
    [block] = experts(compressed("qwen3_moe"))[:1]
    states, weights = torch.randn(1, 64).bfloat16(), torch.ones(1, 1).bfloat16()
    with torch.no_grad():
        expected = block(states, torch.tensor([[1]]), weights)
        made = copy.deepcopy(block)
        for linear in block.down_proj:
            linear.scale.data.zero_()
        assert torch.equal(made(states, torch.tensor([[1]]), weights), expected)
