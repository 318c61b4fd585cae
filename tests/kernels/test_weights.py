"""Which stored weights the kernels are given, and as what."""

from dataclasses import replace

import pytest
import torch
from tests.stored_weights import (
    dense,
    grouped,
    int4,
    int8,
    packed_int4,
    random,
    random_codes,
)

from spqlm.formats import Layout, StoredWeight, group_sparse
from spqlm.formats._grouped import GroupedWeight
from spqlm.formats.low_rank import of_factors
from spqlm.kernels.weights import CODINGS, GROUPED, KINDS, WIDEST, consistent, matrix_of
from spqlm.native import DTYPES, Matrix

CODES, PACKED = torch.zeros(4, 6, dtype=torch.int8), torch.zeros(4, 6, dtype=torch.uint8)


def usable(weight: StoredWeight, bias: torch.Tensor | None = None) -> bool:
    """Both questions have the same answer on the CPU."""
    found = matrix_of(weight, bias)
    assert consistent(weight.layout(), bias) == (found is not None)
    return found is not None


def sparse(bits: int = 4, zero: bool = True, size: int = 16) -> StoredWeight:
    keep = torch.arange(60).view(5, 12) % 3 > 0
    zeros = random(5, 12).bfloat16() if zero else None
    codes = random_codes(5, 12 * size, bits)
    return group_sparse.pack(codes, torch.ones(5, 12).bfloat16(), zeros, keep, bits)


def test_shapes_that_belong_together_are_usable():
    assert usable(int8(CODES, torch.ones(4)))
    assert usable(int8(CODES, torch.ones(1)), torch.ones(4))
    assert usable(packed_int4(PACKED, torch.ones(4, 3)))
    for kind, bits in GROUPED.items():
        assert usable(grouped(random_codes(4, 48, bits), torch.ones(4, 3), kind))
    assert usable(dense(torch.zeros(4, 6)), torch.ones(4).bfloat16())
    assert usable(sparse())
    assert usable(sparse(zero=False), torch.ones(5))


def test_shapes_that_do_not_belong_together_are_not_usable():
    eight, four = int8(CODES, torch.ones(4)), packed_int4(PACKED, torch.ones(4, 3))
    three = grouped(random_codes(4, 48, 3), torch.ones(4, 3), "int3")
    for weight, bias in (
        (replace(eight, scale=torch.ones(3)), None),
        (replace(eight, scale=torch.ones(4, 1)), None),
        (replace(eight, scale=None), None),
        (replace(eight, scale=torch.ones(4, dtype=torch.int8)), None),
        (replace(eight, scale=torch.ones(4).double()), None),
        (replace(eight, scale=torch.ones(1)), None),
        (replace(int8(CODES, torch.ones(1)), scale=torch.ones(4)), None),
        (eight, torch.ones(5)),
        (eight, torch.ones(4, dtype=torch.int32)),
        (replace(eight, codes=PACKED), None),
        (replace(four, codes=CODES), None),
        (replace(four, scale=torch.ones(3, 3)), None),
        (replace(four, scale=torch.ones(4, 5)), None),
        (replace(four, scale=torch.ones(4, 0)), None),
        (replace(three, codes=torch.zeros(4, 24, dtype=torch.uint8)), None),
        (replace(three, scale=torch.ones(4, 2)), None),
        (dense(torch.zeros(4, 6).double()), None),
        (dense(CODES), None),
    ):
        assert not usable(weight, bias)
    for layout in (
        eight.layout()._replace(codes=CODES[0]),
        four.layout()._replace(scale=torch.ones(4)),
        four.layout()._replace(groups=0),
        # Planes of rows that are not packed by 16 columns.
        three.layout()._replace(codes=torch.zeros(4, 9, dtype=torch.uint8), columns=24),
    ):
        assert not consistent(layout, None)


def test_only_stored_groups_that_belong_together_are_usable():
    stored = sparse()
    kept = len(stored.codes)
    for wrong in (
        replace(stored, codes=stored.codes[:-1]),
        replace(stored, codes=stored.codes[:, :6].contiguous()),
        replace(stored, codes=stored.codes.float()),
        replace(stored, codes=stored.codes[0]),
        replace(stored, scale=torch.ones(kept + 1)),
        replace(stored, scale=stored.scale.double()),
        replace(stored, zero=stored.zero.float()),
        replace(stored, zero=stored.zero[1:]),
        replace(stored, mask=stored.mask[:, :1].contiguous()),
        replace(stored, mask=stored.mask.to(torch.int8)),
        replace(stored, offsets=stored.offsets[:-1]),
        replace(stored, offsets=stored.offsets.long()),
        replace(stored, offsets=stored.offsets[None]),
        replace(stored, columns=12 * 16 + 8),
    ):
        assert not usable(wrong)
    assert not usable(stored, torch.ones(4))
    assert not usable(stored, torch.ones(5, dtype=torch.int32))


@pytest.mark.parametrize(
    "weight",
    [
        replace(sparse(), mask=sparse().mask.to("meta")),
        replace(int8(CODES, torch.ones(4)), codes=CODES.T.contiguous().T),
        dense(torch.zeros(4, 12)[:, ::2]),
        sparse(size=128),
    ],
    ids=["elsewhere", "gaps", "a slice", "groups too large"],
)
def test_what_has_no_address_or_no_kernel_has_no_matrix(weight):
    assert matrix_of(weight, None) is None


def test_rows_that_a_kernel_for_stored_groups_cannot_address_have_no_matrix(monkeypatch):
    assert WIDEST == 2**26
    monkeypatch.setattr("spqlm.kernels.weights.WIDEST", 12 * 16)
    assert matrix_of(sparse(), None) is None


@pytest.mark.parametrize(
    ("weight", "number", "groups"),
    [
        (int8(CODES, torch.ones(4)), KINDS["int8"], 1),
        (int8(CODES, torch.ones(1)), KINDS["int8"], 0),
        (packed_int4(PACKED, torch.ones(4, 3)), KINDS["int4"], 3),
        (grouped(random_codes(4, 48, 5), torch.ones(4, 3), "int5"), KINDS["int5"], 3),
        (grouped(random_codes(4, 48, 3), torch.ones(4, 3), "nl3"), KINDS["nl3"], 3),
        (sparse(8), KINDS["sparse_int8"], 12),
        (sparse(4), KINDS["sparse_int4"], 12),
        *((dense(torch.zeros(4, 6, dtype=dtype)), DTYPES[dtype], 0) for dtype in DTYPES),
    ],
)
def test_the_matrix_says_what_the_weight_is(weight, number, groups):
    rows, columns = weight.shape
    bias = torch.ones(rows, dtype=torch.float16)
    matrix = matrix_of(weight, bias)
    assert isinstance(matrix, Matrix)
    assert (matrix.rows, matrix.columns) == (rows, columns)
    assert (matrix.format, matrix.groups) == (number, groups)
    assert matrix.coding == CODINGS.get(weight.format.name, 0)
    assert (matrix.bias, matrix.bias_type) == (bias.data_ptr(), DTYPES[torch.float16])
    codes, *_ = weight.tensors().values()
    assert matrix.weight == codes.data_ptr()


class Other(GroupedWeight):
    """The tensors of int4 under another name."""

    kind = "table4"

    def layout(self) -> Layout:
        return super().layout()._replace(kind=self.kind)


@pytest.mark.parametrize("kind", ["table4", "", "INT4", "int8", "dense", "sparse_int4"])
def test_a_kind_that_is_not_known_or_not_this_one_is_never_multiplied(kind):
    four = int4(random_codes(4, 64, 4), torch.ones(4, 2))
    other = Other(four.format, four.codes, four.scale)
    other.kind = kind
    assert not usable(other)
    other.kind = "int4"
    assert usable(other)


def test_a_weight_of_two_factors_has_no_layout():
    weight = of_factors(torch.ones(4, 2), torch.ones(2, 6))
    assert weight.layout() is None
    assert matrix_of(weight, None) is None
