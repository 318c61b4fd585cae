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

    def operations(self) -> set[str]:
        return {str(node.target) for graph in self.graphs for node in graph.graph.nodes}


@pytest.fixture
def on_kernels(device, monkeypatch):
    """The kernels for every tensor: where there is no GPU, in the interpreter."""
    monkeypatch.setattr(product, "gpu_kernels", lambda x: product.kernels_in_triton())
    torch._dynamo.reset()
    yield device
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("tokens", "operations"),
    [
        (1, {"spqlm.read_codes", "spqlm.read_groups"}),
        (70, {"spqlm.dequantized", "spqlm.dequantized_groups"}),
    ],
    ids=["few", "many"],
)
def test_a_model_is_one_graph_with_the_kernels_in_it(mixed, on_kernels, tokens, operations):
    mixed.to(on_kernels)
    ids = torch.arange(tokens, device=on_kernels)[None]
    backend = Recorder()
    with torch.no_grad():
        expected = mixed(ids).logits
        found = torch.compile(mixed, backend=backend, fullgraph=True)(ids).logits
    torch.testing.assert_close(found, expected)
    assert len(backend.graphs) == 1
    assert {f"{name}.default" for name in operations} <= backend.operations()


def test_operations_say_what_they_return(mixed, on_kernels):
    mixed.to(on_kernels)
    x = torch.randn(2, 64, device=on_kernels)
    [layer] = mixed.model.layers
    dense, dropped = layer.mlp.gate_proj, layer.mlp.up_proj
    matrix = kernels.linear.matrix_of(dense.stored_weight, None)
    stored = kernels.sparse_linear.stored_of(dropped.stored_weight, None)
    operations = torch.ops.spqlm
    checks = ("test_schema", "test_faketensor")
    check = lambda operation, *given: torch.library.opcheck(  # noqa: E731
        operation, given, test_utils=checks
    )
    check(operations.read_codes, x, *matrix, x.dtype)
    check(operations.dequantized, *matrix, torch.bfloat16)
    check(operations.read_groups, x, *stored)
    check(operations.dequantized_groups, *stored, torch.bfloat16)
