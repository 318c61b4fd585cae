"""Rows of input times a matrix of their own: the same numbers as a call for each matrix."""

import pytest
import torch
from tests import stored_weights
from tests.stored_weights import random, random_codes

from spqlm import native
from spqlm.formats import group_sparse
from spqlm.kernels.weights import GROUPED, matrix_of

COUNTS = ([1], [1, 1, 1], [2, 1, 5, 17], [1, 0, 3], [70, 1])


def int8(rows, columns, seed):
    codes = random(rows, columns).mul(40 + seed).clamp(-127, 127).to(torch.int8)
    return stored_weights.int8(codes, random(rows).abs() / 64)


def grouped(kind, rows, columns):
    codes = random_codes(rows, columns, GROUPED[kind])
    return stored_weights.grouped(codes, random(rows, columns // 32) / 16, kind)


def weights(rows, columns):
    made = [int8(rows, columns, 0), grouped("int4", rows, columns), int8(rows, columns, 9)]
    return [*made, grouped("nl3", rows, columns)]


@pytest.mark.parametrize("dtype", native.FLOATS, ids=str)
@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_each_matrix_takes_its_own_rows(library, instruction_set, dtype, counts):
    held = weights(70, 96)[: len(counts)]
    biases = [random(70) * (place + 1) for place in range(len(counts))]
    matrices = [matrix_of(w, b) for w, b in zip(held, biases, strict=True)]
    x = random(sum(counts), 96).to(dtype)
    found = native.linear_each(library, x, matrices, counts)
    parts = zip(x.split(counts), matrices, strict=True)
    alone = [native.linear(library, part, matrix) for part, matrix in parts if len(part)]
    assert torch.equal(found, torch.cat(alone))


def test_several_threads_give_the_same(library):
    held = weights(640, 512)
    matrices, x = [matrix_of(w, None) for w in held], random(4, 512)
    expected = native.linear_each(library, x, matrices, [1, 1, 1, 1])
    torch.set_num_threads(3)
    try:
        assert torch.equal(native.linear_each(library, x, matrices, [1, 1, 1, 1]), expected)
    finally:
        torch.set_num_threads(1)


def test_other_shapes_and_groups_that_are_left_out_are_declined(library):
    held = int8(32, 64, 0), int8(32, 48, 0)
    whole, narrow = (matrix_of(weight, None) for weight in held)
    keep = torch.arange(4).expand(32, 4) % 2 == 0
    weight = group_sparse.pack(random_codes(32, 64, 4), random(32, 4), None, keep, 4)
    sparse, x = matrix_of(weight, None), random(2, 64)
    assert native.linear_each(library, x, [whole, narrow], [1, 1]) is None
    assert native.linear_each(library, x, [whole, sparse], [1, 1]) is None


def test_an_unknown_type_is_refused(library):
    held = int8(32, 64, 0)
    matrix = matrix_of(held, None)
    matrix.scale_type = 9
    with pytest.raises(RuntimeError, match="linear_each"):
        native.linear_each(library, random(1, 64), [matrix], [1])
