"""Codes of two to seven bits in planes, against float64."""

import pytest
import torch
from tests.kernels.triton.test_linear import assert_near, linear, on, random
from tests.stored_weights import definition, grouped, int8, random_codes
from torch import Tensor

from spqlm.formats import StoredWeight, group_sparse
from spqlm.kernels import product, triton
from spqlm.kernels.weights import EVEN, GROUPED
from spqlm.modules.embedding import CompressedEmbedding


def make(
    kind: str, rows: int, columns: int, size: int | None, dtype: torch.dtype
) -> tuple[StoredWeight, Tensor]:
    """A weight in groups of so many inputs, or of whole rows, and in float64."""
    scale = random(2, rows, columns // (size or columns), dtype=dtype)
    weight = grouped(random_codes(rows, columns, GROUPED[kind], seed=1), scale, kind)
    return weight, definition(weight)


SHAPES = pytest.mark.parametrize(
    ("size", "columns"), [(32, 96), (64, 192), (128, 256), (None, 160)], ids=str
)
PLANES = pytest.mark.parametrize("kind", [kind for kind in EVEN if kind != "int4"])


@PLANES
@SHAPES
@pytest.mark.parametrize("count", [1, 3])
def test_codes_are_read_as_they_are_stored(device, kind, size, columns, count):
    stored, weight = make(kind, 9, columns, size, torch.float32)
    x, bias = random(3, count, columns, dtype=torch.float32), random(4, 9, dtype=torch.float32)
    y = linear.product(*on(device, x, stored, bias))
    assert_near(y, x.double() @ weight.T + bias.double(), torch.float32)


@PLANES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_in_half_precision(device, kind, dtype):
    stored, weight = make(kind, 5, 160, 32, dtype)
    for count in (1, 2):
        x = random(3, count, 160, dtype=dtype)
        assert_near(linear.product(*on(device, x, stored, None)), x.double() @ weight.T, dtype)


@PLANES
@SHAPES
def test_the_weight_is_written_out(device, kind, size, columns):
    stored, weight = make(kind, 5, columns, size, torch.float32)
    [moved] = on(device, stored)
    dense = linear.dequantized(linear.matrix_of(moved, None), torch.float32)
    assert torch.equal(dense.cpu(), weight.float())
    many = random(3, linear.FEW_ROWS + 1, columns, dtype=torch.float32)
    y = linear.product(many.to(device), moved, None)
    assert_near(y, many.double() @ weight.T, torch.float32)


@pytest.mark.parametrize("kind", EVEN)
def test_rows_of_a_table(device, kind):
    stored, _ = make(kind, 11, 96, 32, torch.float32)
    [moved], index = on(device, stored), torch.tensor([10, 0, 3, 3], device=device)
    rows = linear.restored(moved, index=index)
    assert torch.equal(rows.cpu(), moved.restore().cpu()[index.cpu()])
    wrong = linear.restored(moved, index=torch.tensor([11, -1, 2], device=device))
    assert wrong.isnan().all(1).tolist() == [True, True, False]
    assert linear.restored(moved, index=index[:0]) is None


def test_rows_of_a_table_of_bytes(device):
    scale = random(2, 11, dtype=torch.float32).abs()
    [stored] = on(device, int8(random_codes(11, 50, 8), scale))
    index = torch.tensor([4, 10], device=device)
    assert torch.equal(
        linear.restored(stored, index=index).cpu(), stored.restore().cpu()[index.cpu()]
    )


@pytest.mark.parametrize("right", ["int3", "int5", "nl2", "nl3"])
@pytest.mark.parametrize("left", ["int2", "int6", "nl4", "nl5"])
@pytest.mark.parametrize("count", [1, 3])
def test_both_factors(device, right, left, count):
    inner, right_weight = make(right, 32, 64, 32, torch.float32)
    outer, left_weight = make(left, 9, 32, 32, torch.float32)
    x = random(3, count, 64, dtype=torch.float32)
    y = linear.low_rank(*on(device, x, inner, outer, None))
    assert_near(y, x.double() @ right_weight.T @ left_weight.T, torch.float32)


def test_planes_that_are_not_whole_words_are_left_to_pytorch(device):
    stored, _ = make("int3", 5, 48, None, torch.float32)
    x = torch.ones(2, 48, device=device)
    assert linear.product(x, *on(device, stored, None)) is None


@pytest.fixture
def on_kernels(device, monkeypatch):
    """The kernels for every tensor: where there is no GPU, in the interpreter."""
    monkeypatch.setattr(product, "kernels_for", lambda x: triton)
    return device


@pytest.mark.parametrize("kind", [kind for kind in EVEN if kind != "int4"])
def test_gradients_of_inputs_and_scales(on_kernels, kind):
    stored, weight = make(kind, 5, 96, 32, torch.float32)
    [moved] = on(on_kernels, stored)
    moved.scale.requires_grad_()
    x = random(3, 2, 96, dtype=torch.float32).to(on_kernels).requires_grad_()
    product.linear(x, moved, None).sum().backward()
    assert_near(x.grad[:1], weight.sum(0)[None], torch.float32)
    codes = moved.unpacked.double().unflatten(1, (3, 32))
    wanted = (codes * x.detach().double().sum(0).unflatten(0, (3, 32))).sum(2)
    assert_near(moved.scale.grad, wanted.cpu(), torch.float32)


def test_dropped_groups_come_back_as_zeros(on_kernels):
    keep = random(5, 9, 4) > 0
    stored = group_sparse.pack(
        random_codes(9, 64, 4), random(6, *keep.shape).float(), None, keep, 4
    )
    found = product.restored(on(on_kernels, stored)[0], torch.float32)
    assert torch.equal(found.cpu(), definition(stored).float())


def test_an_embedding_looks_up_by_the_kernel(on_kernels, monkeypatch):
    stored, _ = make("int3", 11, 96, 32, torch.float32)
    [moved] = on(on_kernels, stored)
    table = CompressedEmbedding(moved, embed_scale=2.0)
    monkeypatch.setattr(type(moved), "take_rows", None)
    ids = torch.tensor([[1, 10], [0, 1]], device=on_kernels)
    assert torch.equal(table(ids).cpu(), 2 * moved.restore().cpu()[ids.cpu()])
