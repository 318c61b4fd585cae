import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from spqlm.numerics import group_sparse
from spqlm.numerics.group_sparse import GroupSparse


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make(
    rows=5, groups=11, group_size=16, bits=4, zero=False, seed=0, density=0.5
) -> tuple[GroupSparse, Tensor, Tensor, Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(seed)
    limit = 8 if bits == 4 else 127
    codes = torch.randint(
        -limit, 8 if bits == 4 else 128, (rows, groups * group_size), generator=generator
    ).to(torch.int8)
    scale = random(seed + 1, rows, groups)
    zeros = random(seed + 2, rows, groups) if zero else None
    keep = torch.rand(rows, groups, generator=generator) < density
    return group_sparse.pack(codes, scale, zeros, keep, bits), codes, keep, scale, zeros


def defined(codes: Tensor, keep: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
    """Entry by entry, in float64."""
    size = codes.shape[1] // keep.shape[1]
    dense = torch.zeros(codes.shape, dtype=torch.float64)
    for row in range(codes.shape[0]):
        for column in range(codes.shape[1]):
            group = column // size
            if keep[row, group]:
                dense[row, column] = float(codes[row, column]) * float(scale[row, group])
                dense[row, column] += 0 if zero is None else float(zero[row, group])
    return dense


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("group_size", [8, 16, 32])
def test_it_stands_for_the_matrix_of_its_kept_groups(bits, zero, group_size):
    weight, *parts = make(bits=bits, zero=zero, group_size=group_size)
    assert (weight.bits, weight.group_size, weight.groups) == (bits, group_size, 11)
    expected = defined(*parts)
    assert torch.allclose(group_sparse.dequantize(weight).double(), expected, atol=1e-5)


@given(
    rows=st.integers(1, 9),
    groups=st.integers(1, 19),
    density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    bits=st.sampled_from([4, 8]),
    seed=st.integers(0, 5),
)
def test_the_index_survives_packing(rows, groups, density, bits, seed):
    weight, codes, keep, _, _ = make(rows, groups, 8, bits, seed=seed, density=density)
    assert torch.equal(weight.keep, keep)
    assert torch.equal(group_sparse.unpack_mask(group_sparse.pack_mask(keep), groups), keep)
    kept = codes.unflatten(1, (groups, 8))[keep]
    assert torch.equal(group_sparse.stored_codes(weight), kept)
    assert weight.offsets.tolist() == [0, *keep.sum(1).cumsum(0).tolist()]
    group_sparse.check(weight)


@given(seed=st.integers(0, 5), first=st.integers(0, 10), width=st.integers(1, 11))
def test_slices_are_those_of_the_matrix(seed, first, width):
    weight, *_ = make(zero=True, seed=seed)
    dense = group_sparse.dequantize(weight)
    index = torch.tensor([4, 0, 2])
    rows = group_sparse.take_rows(weight, index)
    assert torch.equal(group_sparse.dequantize(rows), dense[index])
    last = min(first + width, 11)
    columns = group_sparse.take_groups(weight, first, last)
    assert torch.equal(group_sparse.dequantize(columns), dense[:, 16 * first : 16 * last])
    for part in (rows, columns):
        group_sparse.check(part)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda w: w._replace(mask=w.mask | 0x80), "beyond the last group"),
        (lambda w: w._replace(mask=w.mask ^ 1), "offsets"),
        (lambda w: w._replace(offsets=w.offsets.flip(0)), "offsets"),
        (lambda w: w._replace(offsets=w.offsets + 10**9), "offsets"),
        (lambda w: w._replace(codes=w.codes[1:], scale=w.scale[1:]), "groups, but"),
    ],
)
def test_an_index_that_kernels_could_not_follow_is_refused(damage, words):
    weight, *_ = make()
    with pytest.raises(ValueError, match=words):
        group_sparse.check(damage(weight))


def test_packing_refuses_what_it_cannot_hold():
    codes, keep = torch.zeros(2, 16, dtype=torch.int8), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="do not divide"):
        group_sparse.pack(codes, torch.ones(2, 3), None, keep, 4)
    with pytest.raises(ValueError, match="4 or 8 bits"):
        group_sparse.pack(codes, torch.ones(2, 2), None, keep[:, :2], 3)


def test_half_of_the_groups_of_16_in_4_bits_take_at_most_2_8_bits_a_weight():
    rows, columns = 576, 576
    keep = torch.zeros(rows, columns // 16, dtype=torch.bool)
    keep[:, ::2] = True
    codes = torch.zeros(rows, columns, dtype=torch.int8)
    scale = torch.ones(keep.shape, dtype=torch.bfloat16)
    weight = group_sparse.pack(codes, scale, None, keep, 4)
    held = [t for t in weight if isinstance(t, Tensor)]
    size = sum(t.numel() * t.element_size() for t in held)
    assert size == group_sparse.stored_bytes(rows, columns, int(keep.sum()), 16, 4, 2, False)
    assert size * 8 / (rows * columns) < 2.65
