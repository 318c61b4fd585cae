"""Inverses of triangular matrices against the definition."""

import pytest
import torch

from spqlm.numerics.triangular import BLOCK, invert_lower_


@pytest.mark.parametrize("size", [1, 5, BLOCK, BLOCK + 1, 3 * BLOCK + 7])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_times_the_matrix_it_is_one(size, dtype, tolerance):
    generator = torch.Generator().manual_seed(size)
    full = torch.randn(size, size, dtype=torch.float64, generator=generator)
    lower = torch.linalg.cholesky(full @ full.T / size + torch.eye(size)).to(dtype)
    given = lower.clone()
    found = invert_lower_(given)
    assert found is given
    assert torch.equal(found, found.tril())
    product = found.double() @ lower.double()
    assert float((product - torch.eye(size)).abs().max()) < tolerance
