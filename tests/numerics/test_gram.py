import torch
from hypothesis import given
from hypothesis import strategies as st

from spqlm.numerics.gram import add_gram, complete_gram


@given(width=st.sampled_from([1, 5, 287, 288, 289, 600]), count=st.integers(1, 40))
def test_it_is_the_sum_of_outer_products(width, count):
    rows = torch.randn(count, width, generator=torch.Generator().manual_seed(count)).double()
    total = torch.zeros(width, width, dtype=torch.float64)
    for part in rows.split(7):
        add_gram(total, part)
    found = complete_gram(total)
    assert torch.equal(found, found.T)
    assert torch.allclose(found, rows.T @ rows)
