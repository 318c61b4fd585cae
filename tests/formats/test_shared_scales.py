"""Scales of groups as integers, times a float for each row."""

import copy

import pytest
import torch
from tests.stored_weights import random
from torch import nn

from spqlm.formats import StoredWeight, dump, parse
from spqlm.formats._shared_scales import MOST, shared, steps_of
from spqlm.formats.nl3 import Nl3
from spqlm.kernels.weights import matrix_of
from spqlm.numerics.integer import round_scale
from spqlm.numerics.metric import Metric

SHARED, FLOATS = Nl3(group_size=32, scales="int8"), Nl3(group_size=32)
ROWS, COLUMNS = 24, 256


def fitted(form, rounding="gptq") -> StoredWeight:
    mixing = random(COLUMNS, COLUMNS, seed=1) / COLUMNS**0.5
    metric = Metric([(mixing @ mixing.T + 0.1 * torch.eye(COLUMNS), torch.ones(ROWS))])
    return form.fit(random(ROWS, COLUMNS), metric, rounding)


def steps(rows: int = 50, groups: int = 18, spread: float = 1.0) -> torch.Tensor:
    return round_scale(
        1e-3 * torch.exp(spread * random(rows, groups)) * random(rows, groups).sign()
    )


@pytest.mark.parametrize("spread", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("size", [1e-2, 1.0, 1e3])
def test_what_is_shared_is_near_and_shared_again_the_same(spread, size):
    given = round_scale(size * steps(spread=spread))
    scale, multiples = shared(given)
    assert (scale.shape, multiples.dtype) == ((50, 1), torch.int8)
    assert torch.equal(scale[:, 0], given.abs().amax(1))
    assert int(multiples.abs().amax()) == MOST and bool(multiples.all())
    found = steps_of(scale, multiples)
    # Half of a 127th of the largest, and what rounding to eight bits does; nothing becomes zero.
    assert bool(((found - given).abs() <= scale / 127 + scale / 256).all())
    assert bool((found.sign() == given.sign()).all())
    again = shared(found)
    assert torch.equal(again[0], scale) and torch.equal(again[1], multiples)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_steps_are_the_same_numbers_in_every_dtype(dtype):
    scale, multiples = shared(steps())
    exact = steps_of(scale, multiples)
    assert torch.equal(steps_of(scale.to(dtype), multiples).float(), exact)
    assert torch.equal(round_scale(exact), exact)


def test_steps_of_a_parameter_are_kept_until_it_changes():
    scale, multiples = (nn.Parameter(t, requires_grad=False) for t in shared(steps()))
    first = steps_of(scale, multiples)
    assert steps_of(scale, multiples) is first
    with torch.no_grad():
        scale *= 2
    doubled = steps_of(scale, multiples)
    assert torch.equal(doubled, 2 * first)
    with torch.no_grad():
        multiples[:, 0] = -multiples[:, 0]
    assert torch.equal(steps_of(scale, multiples)[:, 0], -doubled[:, 0])
    scale.data = scale.data.to(torch.bfloat16)
    assert steps_of(scale, multiples).dtype == torch.bfloat16
    # A copy is another tensor, with what it holds.
    other = copy.deepcopy(multiples)
    assert torch.equal(steps_of(scale, other), steps_of(scale, multiples))
    # Nothing is kept of what is no parameter, such as some rows.
    assert steps_of(scale[:2], multiples[:2]) is not steps_of(scale[:2], multiples[:2])


def test_kernels_keep_what_was_made_for_them():
    weight = fitted(SHARED)
    matrix = matrix_of(weight, None)
    assert matrix is not None and matrix.scale == matrix.kept.scale.data_ptr()
    assert torch.equal(matrix.kept.scale, weight.plain.scale)


@pytest.mark.parametrize("rounding", ["nearest", "gptq", "descent"])
def test_it_loses_no_more_than_floats_and_takes_half_of_their_bytes(rounding):
    mixing = random(COLUMNS, COLUMNS, seed=1) / COLUMNS**0.5
    hessian = mixing @ mixing.T + 0.1 * torch.eye(COLUMNS)
    metric = Metric([(hessian, torch.ones(ROWS))])
    plain, small = (fitted(form, rounding) for form in (FLOATS, SHARED))
    losses = [
        metric.loss(weight.restore(torch.float32) - random(ROWS, COLUMNS))
        for weight in (plain, small)
    ]
    assert losses[1] < 1.01 * losses[0]
    groups = COLUMNS // 32
    assert FLOATS.stored_bytes(ROWS, COLUMNS, 2) - SHARED.stored_bytes(ROWS, COLUMNS, 2) == ROWS * (
        groups - 2
    )


def test_what_has_floats_is_stated_as_it_always_was():
    assert dump(FLOATS) == {"format": "nl3", "group_size": 32}
    assert dump(SHARED) == {"format": "nl3", "group_size": 32, "scales": "int8"}
    assert parse({"nl3": {"group_size": 32, "scales": "int8"}}) == SHARED != FLOATS
    with pytest.raises(ValueError, match="scales"):
        parse({"nl3": {"scales": "int4"}})


def test_an_integer_or_a_scale_of_zero_is_refused():
    weight = fitted(SHARED)
    beyond = weight.multiples.clone()
    beyond[0, 0] = -128
    with pytest.raises(ValueError, match="has a multiple below -127"):
        SHARED.hold(weight.tensors() | {"multiples": beyond}, COLUMNS).check()
    for name in ("scale", "multiples"):
        damaged = weight.tensors()[name].clone()
        damaged[3, 0] = 0
        with pytest.raises(ValueError, match="has a"):
            SHARED.hold(weight.tensors() | {name: damaged}, COLUMNS).check()
