import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spq.numerics.low_rank import truncate
from spq.numerics.whitening import whitened_truncate


def problem(rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(3 * columns, columns, generator=generator)
    inputs *= torch.rand(columns, generator=generator) * 3 + 0.1
    return torch.randn(rows, columns, generator=generator), inputs.T @ inputs / len(inputs)


def lost(weight, left, right, hessian):
    error = weight.double() - left.double() @ right.double()
    return float(((error @ hessian.double()) * error).sum())


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 1000), st.data())
def test_equals_the_paper_s_definition(rows, columns, seed, data):
    rank = data.draw(st.integers(1, min(rows, columns)))
    weight, hessian = problem(rows, columns, seed)
    root = torch.linalg.cholesky(hessian.double())
    u, s, v = torch.linalg.svd(weight.double() @ root, full_matrices=False)
    expected = (u[:, :rank] * s[:rank]) @ v[:rank] @ torch.linalg.inv(root)
    left, right = whitened_truncate(weight, hessian, rank)
    assert (left.shape, right.shape) == ((rows, rank), (rank, columns))
    assert torch.allclose((left @ right).double(), expected, atol=1e-4)
    assert lost(weight, left, right, hessian) == pytest.approx(
        float((s[rank:] ** 2).sum()), abs=1e-3
    )


def test_loses_less_of_the_output_than_the_plain_svd():
    weight, hessian = problem(24, 32, 0)
    plain, whitened = (
        lost(weight, *factors, hessian)
        for factors in (truncate(weight, 8), whitened_truncate(weight, hessian, 8))
    )
    assert whitened < 0.9 * plain
