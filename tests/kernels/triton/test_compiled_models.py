"""What torch.compile makes of a model whose layers run in Triton."""

from functools import partial

import pytest
import torch
from tests.checkpoint.test_group_sparse_checkpoint import to_group_sparse
from tests.checkpoint.test_int4_checkpoint import to_int4
from tests.compressed_models import change, factorised, quantize_all
from tests.helpers import tiny_model
from transformers import PreTrainedModel

from spqlm.checkpoint.quantizer import attach
from spqlm.kernels import product

kernels = pytest.importorskip("spqlm.kernels.triton", reason="triton is not installed")

PRODUCTS = ("q", "k", "v", "o", "gate", "up", "down", "lm_head")


@pytest.fixture
def mixed() -> PreTrainedModel:
    """One layer: int8 factors in attention, an MLP in 4 bits with and without dropped groups."""
    model = tiny_model(tie_word_embeddings=True, num_hidden_layers=1)
    mlp = "model.layers.0.mlp"
    change(model, f"{mlp}.gate_proj", partial(to_int4, group_size=32))
    change(model, f"{mlp}.up_proj", partial(to_group_sparse, zero=False))
    for part in "qkvo":
        change(model, f"model.layers.0.self_attn.{part}_proj", factorised)
    quantize_all(model)
    attach(model)
    return model


class Recorder:
    """A backend that keeps what it was asked to compile, and runs it as it is."""

    def __init__(self):
        self.graphs = []

    def __call__(self, graph, inputs):
        self.graphs.append(graph)
        return graph.forward


@pytest.fixture
def on_kernels(device, monkeypatch):
    """The kernels for every tensor: where there is no GPU, in the interpreter."""
    monkeypatch.setattr(product, "kernels_for", lambda x: kernels)
    torch._dynamo.reset()
    yield device
    torch._dynamo.reset()


@pytest.mark.parametrize("tokens", [1, 70], ids=["few", "many"])
def test_a_model_is_one_graph_with_the_kernels_in_it(mixed, on_kernels, tokens):
    mixed.to(on_kernels)
    ids = torch.arange(tokens, device=on_kernels)[None]
    backend = Recorder()
    with torch.no_grad():
        expected = mixed(ids).logits
        found = torch.compile(mixed, backend=backend, fullgraph=True)(ids).logits
    torch.testing.assert_close(found, expected)
    [graph] = backend.graphs
    products = [node for node in graph.graph.nodes if str(node.target) == "spqlm.product.default"]
    assert len(products) == len(PRODUCTS)
