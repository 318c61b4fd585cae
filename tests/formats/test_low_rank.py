import pytest
import torch
from tests.stored_weights import definition, random

from spqlm import formats
from spqlm.formats.low_rank import LowRank, of_factors
from spqlm.numerics.metric import Metric

INT8, INT4 = formats.parse("int8"), formats.parse({"int4": {"group_size": 32}})


def test_a_whole_rank_is_the_weight_itself():
    weight = random(6, 9)
    metric = Metric([(torch.eye(9), torch.ones(6))], damping=0.0)
    stored = LowRank(rank=6, factor=None).fit(weight, metric, "nearest")
    torch.testing.assert_close(stored.restore(), weight, rtol=1e-4, atol=1e-5)


def test_two_factors_are_held_without_a_copy():
    left, right = random(7, 3), random(3, 9)
    stored = of_factors(left, right)
    assert stored.format == LowRank(rank=3, factor=None)
    assert list(stored.tensors()) == ["right.weight", "left.weight"]
    assert stored.tensors()["left.weight"] is left
    assert torch.equal(stored.restore(), left @ right)


@pytest.mark.parametrize("factor", [None, INT8, INT4], ids=str)
def test_it_is_about_what_its_factors_are(factor):
    form = LowRank(rank=32, factor=factor)
    inner = factor or formats.parse("dense")
    assert (form.codes, form.code_bits) == (inner.codes, inner.code_bits)
    assert form.describe(64, 96) == f"rank 32, {inner.describe(64, 32)}"
    expected = inner.stored_bytes(64, 32, 2) + inner.stored_bytes(32, 96, 2)
    assert form.stored_bytes(64, 96, 2) == expected


def test_a_rank_that_a_shape_does_not_have_or_a_factor_does_not_fit_is_refused():
    assert "rank 9 is more than" in LowRank(rank=9, factor=None).misfit(8, 64)
    assert "must divide the width 16" in LowRank(rank=16, factor=INT4).misfit(64, 64)
    assert "must divide the width 48" in LowRank(rank=32, factor=INT4).misfit(64, 48)


def test_the_left_factor_makes_up_for_the_rounding_of_the_right_one():
    weight, metric = random(40, 64), Metric([(torch.eye(64), torch.ones(40))])
    form = LowRank(rank=32, factor=INT4)
    stored = form.fit(weight, metric, "gptq")
    exact = LowRank(rank=32, factor=None).fit(weight, metric, "gptq")
    apart = INT4.fit(
        definition(exact.left).float(), Metric([(torch.eye(32), torch.ones(40))]), "gptq"
    )
    naive = definition(apart) @ definition(stored.right)
    assert metric.loss(stored.restore() - weight) < metric.loss(naive.float() - weight)


def test_a_factor_that_would_overflow_shares_its_magnitude_with_the_other():
    weight = torch.full((16, 8), 60_000.0)
    stored = of_factors(torch.eye(16)[:, :8] / 8, weight[:8] * 8).cast(torch.float16)
    assert all(bool(torch.isfinite(t).all()) for t in stored.tensors().values())
    assert torch.equal(stored.restore(torch.float32)[:8], weight[:8].half().float())
