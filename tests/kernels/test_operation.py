"""torch.compile and torch.export of every format, in a process that may die."""

import json
import subprocess
import sys

import pytest
import torch
from tests.stored_weights import int8, random, random_codes

from spqlm.kernels import product
from spqlm.modules.linear import CompressedLinear
from spqlm.modules.low_rank_linear import LowRankLinear


@pytest.mark.slow
def test_every_format_compiles_and_exports_whole_on_tensors_that_are_not_aligned():
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.compile_formats"], capture_output=True, text=True
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"died after {found[-1:]}: {done.stderr[-2000:]}"
    assert len(found) > 10
    assert [case for case in found if not all(case.values())] == []


class Recorder:
    """A backend that keeps what it was asked to compile, and runs it as it is."""

    def __init__(self):
        self.operations = []

    def __call__(self, graph, inputs):
        targets = [str(node.target) for node in graph.graph.nodes]
        self.operations += [name for name in targets if name.startswith(("spqlm", "aten"))]
        return graph.forward


@pytest.fixture
def recorder():
    torch._dynamo.reset()
    yield Recorder()
    torch._dynamo.reset()


@pytest.fixture
def layer():
    return CompressedLinear(int8(random_codes(24, 40, 8), random(24, seed=2).abs()), random(24))


def test_any_number_of_rows_is_one_operation(recorder, layer):
    compiled = torch.compile(layer, backend=recorder, fullgraph=True, dynamic=True)
    for rows in (2, product.FEW_ROWS + 1, 70):
        x = random(rows, 40)
        assert torch.equal(compiled(x), layer(x))
    assert recorder.operations == ["spqlm.product.default"]


def test_both_factors_are_one_operation(recorder):
    right = CompressedLinear(int8(random_codes(16, 40, 8), random(16, seed=2).abs()), None)
    left = CompressedLinear(int8(random_codes(24, 16, 8), random(1, seed=3).abs()), random(24))
    layer = LowRankLinear(right, left)
    compiled = torch.compile(layer, backend=recorder, fullgraph=True, dynamic=False)
    for rows in (2, 40):
        x = random(rows, 40)
        assert torch.equal(compiled(x), layer(x))
    assert recorder.operations == ["spqlm.product.default"] * 2


def test_a_compiled_layer_has_gradients(layer):
    torch._dynamo.reset()
    x, other = (random(5, 40).requires_grad_() for _ in range(2))
    torch.compile(layer, backend="aot_eager", fullgraph=True)(x).square().sum().backward()
    layer(other).square().sum().backward()
    torch.testing.assert_close(x.grad, other.grad)


def test_what_no_kernel_takes_is_computed_by_the_formula(recorder, layer):
    x = random(2, 40).double()
    found = torch.compile(layer, backend=recorder, fullgraph=True)(x)
    torch.testing.assert_close(found, layer(x))
    assert "spqlm.product.default" not in recorder.operations


def test_the_operation_says_what_it_returns(layer):
    weight = layer.stored_weight
    stated = product.operation._stated(weight.format, ("codes", "scale"), 40)
    checks = ("test_schema", "test_faketensor")
    given = (random(3, 40), layer.bias, [weight.codes, weight.scale], stated)
    torch.library.opcheck(torch.ops.spqlm.product, given, test_utils=checks)
