import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spqlm.numerics.group_sparse import mask_bytes, offsets_of, pack_mask, spread, unpack_mask


def some(rows: int, groups: int, density: float, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, groups, generator=generator) < density


@given(
    rows=st.integers(1, 9),
    groups=st.integers(1, 19),
    density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    seed=st.integers(0, 5),
)
def test_masks_survive_packing(rows, groups, density, seed):
    keep = some(rows, groups, density, seed)
    packed = pack_mask(keep)
    assert packed.dtype == torch.uint8
    assert packed.shape == (rows, mask_bytes(groups)) == (rows, (groups + 7) // 8)
    for row, bits in zip(keep.tolist(), packed.tolist(), strict=True):
        for group, kept in enumerate(row):
            assert bool(bits[group // 8] >> (group % 8) & 1) == kept
    assert torch.equal(unpack_mask(packed, groups), keep)
    offsets = offsets_of(keep)
    assert offsets.dtype == torch.int32
    assert offsets.tolist() == [0, *keep.sum(1).cumsum(0).tolist()]


@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_spread_groups_stand_where_the_mask_says(density, dtype):
    keep = some(5, 7, density, seed=1)
    kept = int(keep.sum())
    values = torch.arange(1, 4 * kept + 1, dtype=dtype).view(kept, 4)
    whole = spread(values, keep)
    expected = torch.zeros(5, 7, 4, dtype=dtype)
    expected[keep] = values
    assert whole.dtype == dtype
    assert torch.equal(whole, expected.flatten(1))


def test_spread_works_without_data_and_lets_gradients_through():
    keep = some(5, 7, 0.5, seed=1)
    values = torch.ones(int(keep.sum()), 4, requires_grad=True)
    assert spread(values.detach().to("meta"), keep.to("meta")).shape == (5, 28)
    (spread(values, keep) * 3).sum().backward()
    assert torch.equal(values.grad, torch.full_like(values, 3))
