from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.stored_weights import definition, random, random_codes
from torch import Tensor

from spqlm.errors import SpqError
from spqlm.formats import group_sparse
from spqlm.formats.group_sparse import GroupSparse, GroupSparseWeight, of_share
from spqlm.numerics.metric import Metric


def make(
    rows=5, groups=11, group_size=16, bits=4, zero=False, seed=0, density=0.5
) -> tuple[GroupSparseWeight, Tensor, Tensor, Tensor, Tensor | None]:
    codes = random_codes(rows, groups * group_size, bits, seed)
    scale = random(rows, groups, seed=seed + 1)
    zeros = random(rows, groups, seed=seed + 2) if zero else None
    keep = torch.rand(rows, groups, generator=torch.Generator().manual_seed(seed + 3)) < density
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
    form = weight.format
    assert (form.bits, form.group_size, form.zero, weight.groups) == (bits, group_size, zero, 11)
    expected = defined(*parts)
    assert torch.allclose(weight.restore().double(), expected, atol=1e-5)
    assert torch.equal(definition(weight), expected)


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
    kept = codes.unflatten(1, (groups, 8))[keep]
    assert torch.equal(weight.unpacked, kept)
    assert weight.format.kept == len(kept)
    assert weight.offsets.tolist() == [0, *keep.sum(1).cumsum(0).tolist()]
    weight.check()


@given(seed=st.integers(0, 5), first=st.integers(0, 10), width=st.integers(1, 11))
def test_slices_are_those_of_the_matrix(seed, first, width):
    weight, *_ = make(zero=True, seed=seed)
    dense = weight.restore()
    index = torch.tensor([4, 0, 2])
    rows = weight.take_rows(index)
    assert torch.equal(rows.restore(), dense[index])
    last = min(first + width, 11)
    columns = weight.take_columns(torch.arange(16 * first, 16 * last))
    assert torch.equal(columns.restore(), dense[:, 16 * first : 16 * last])
    for part in (rows, columns):
        part.check()
        assert part.format.kept == len(part.codes)


def test_groups_that_are_not_neighbours_can_be_taken_and_parts_of_one_cannot():
    weight, *_ = make(zero=True)
    index = torch.cat((torch.arange(16, 32), torch.arange(64, 96)))
    assert torch.equal(weight.take_columns(index).restore(), weight.restore()[:, index])
    for wrong in (torch.arange(8, 40), torch.arange(15), torch.arange(32)[1:]):
        with pytest.raises(SpqError, match="whole groups of 16"):
            weight.take_columns(wrong)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda w: replace(w, mask=w.mask | 0x80), "beyond the last group"),
        (lambda w: replace(w, mask=w.mask ^ 1), "offsets"),
        (lambda w: replace(w, offsets=w.offsets.flip(0)), "offsets"),
        (lambda w: replace(w, offsets=w.offsets + 1), "offsets"),
        (lambda w: replace(w, offsets=w.offsets + 10**9), "offsets"),
        (lambda w: replace(w, codes=w.codes[1:], scale=w.scale[1:]), "groups, but"),
        (lambda w: replace(w, scale=0 * w.scale), "scale that is zero"),
        (lambda w: replace(w, scale=w.scale * torch.inf), "scale that is zero or not finite"),
        (lambda w: replace(w, zero=w.zero * torch.nan), "zero that is not finite"),
    ],
    ids=range(9),
)
def test_an_index_that_kernels_could_not_follow_is_refused(damage, words):
    weight, *_ = make(zero=True)
    weight.check()
    with pytest.raises(ValueError, match=words):
        damage(weight).check()


def test_packing_refuses_what_it_cannot_hold():
    codes, keep = torch.zeros(2, 16, dtype=torch.int8), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="do not divide"):
        group_sparse.pack(codes, torch.ones(2, 3), None, keep, 4)
    with pytest.raises(ValueError, match="3 bits need a group_size that 16 divides, not 8"):
        group_sparse.pack(codes, torch.ones(2, 2), None, keep[:, :2], 3)
    with pytest.raises(ValueError, match="less than or equal to 8"):
        group_sparse.pack(codes, torch.ones(2, 1), None, keep[:, :1], 9)


@pytest.mark.parametrize("bits", [2, 3, 5, 6, 7])
def test_groups_of_other_widths_are_packed_without_waste(bits):
    codes, keep = random_codes(5, 96, bits), torch.arange(30).view(5, 6) % 3 > 0
    weight = group_sparse.pack(codes, torch.ones(5, 6), None, keep, bits)
    assert weight.codes.shape == (int(keep.sum()), 2 * bits)
    expected = codes * keep.repeat_interleave(16, dim=1)
    assert torch.equal(weight.restore(), expected.float())
    assert torch.equal(definition(weight), expected.double())


def test_half_of_the_groups_of_16_in_4_bits_take_at_most_2_8_bits_a_weight():
    rows, columns = 576, 576
    keep = torch.zeros(rows, columns // 16, dtype=torch.bool)
    keep[:, ::2] = True
    codes = torch.zeros(rows, columns, dtype=torch.int8)
    scale = torch.ones(keep.shape, dtype=torch.bfloat16)
    weight = group_sparse.pack(codes, scale, None, keep, 4)
    size = sum(t.numel() * t.element_size() for t in weight.tensors().values())
    assert size == weight.format.stored_bytes(rows, columns, 2)
    assert size * 8 / (rows * columns) < 2.65


@given(
    rows=st.integers(1, 40),
    groups=st.integers(1, 40),
    share=st.floats(0, 1, exclude_max=True),
)
def test_a_share_of_the_groups_is_dropped_and_every_row_can_keep_one(rows, groups, share):
    form = of_share(rows, groups * 8, 8, 4, share)
    dropped = rows * groups - form.kept
    assert dropped <= share * rows * groups
    assert dropped > share * rows * groups - 1 or form.kept == rows
    assert form.kept >= rows
    assert form.misfit(rows, groups * 8) is None
    assert form.sparsity(rows, groups * 8) == pytest.approx(dropped / (rows * groups))


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_fitting_keeps_the_salient_groups(bits, zero):
    weight = random(6, 64) * 0.01
    weight[:, 16:32] = random(6, 16, seed=1)
    form = GroupSparse(group_size=16, bits=bits, kept=6, zero=zero)
    stored = form.fit(weight, Metric([(torch.eye(64), torch.ones(6))]), "gptq")
    assert stored.format == form
    assert stored.keep.nonzero().tolist() == [[row, 1] for row in range(6)]
    off = (stored.restore() - weight)[:, 16:32].abs().max()
    assert float(off) < (0.5 if bits == 4 else 0.05)
