"""Decoding that transformers compiles; the kernels inside are in tests/kernels/triton."""

import copy

import pytest
import torch
from tests.compressed_models import compressed
from tests.decoding.decoders import PROMPT, generate
from tests.helpers import tiny_model
from transformers import CompileConfig

from spqlm.decoding.cuda_graphs import decode_by_graphs
from spqlm.decoding.optimize import optimize
from spqlm.modules.low_rank_linear import LowRankLinear


@pytest.fixture(autouse=True)
def _forget():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "opt", "gemma3_text"])
def test_the_cache_of_a_fixed_length_changes_no_token(family):
    model = tiny_model(family)
    expected = generate(model, new=12)
    assert decode_by_graphs(model) is model
    assert model.generation_config.cache_implementation == "static"
    assert torch.equal(generate(model, new=12), expected)


@pytest.mark.parametrize("kind", ["int8", "low_rank", "paper"])
def test_generate_compiles_a_compressed_model_whole(kind):
    model = copy.deepcopy(compressed(kind, tied=True))
    expected = generate(model, new=12)
    graphs = []
    config = CompileConfig(
        fullgraph=True, mode=None, backend=lambda graph, inputs: graphs.append(graph) or graph
    )
    config._compile_all_devices = True
    found = generate(decode_by_graphs(model), new=12, compile_config=config)
    assert torch.equal(found, expected)
    assert graphs


def test_compiled_layers_keep_their_values():
    model = compressed("paper", tied=True)
    ids = torch.cat([PROMPT, PROMPT], dim=1)
    with torch.no_grad():
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)
    assert any(isinstance(module, LowRankLinear) for module in model.modules())


def test_on_a_gpu_optimize_asks_for_graphs(monkeypatch):
    model = tiny_model()
    monkeypatch.setattr(type(model), "device", torch.device("cuda"))
    assert optimize(model) is model
    assert model.generation_config.cache_implementation == "static"


def test_a_model_that_cannot_be_compiled_is_left_alone(monkeypatch, caplog):
    model = tiny_model()
    monkeypatch.setattr(type(model), "_can_compile_fullgraph", False)
    assert decode_by_graphs(model).generation_config.cache_implementation is None
    assert "cannot compile LlamaForCausalLM" in caplog.text
