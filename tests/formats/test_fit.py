"""A weight, brought into every format that a budget chooses among."""

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from spqlm.formats import Format, StoredWeight
from spqlm.formats.dense import Dense, DenseWeight
from spqlm.formats.group_sparse import GroupSparse, of_share
from spqlm.formats.int4 import Int4
from spqlm.formats.int8 import Int8
from spqlm.formats.low_rank import LowRank, LowRankWeight
from spqlm.modules.ops import linear_of, module_bytes
from spqlm.numerics import gptq, integer, low_rank
from spqlm.numerics.metric import Metric

ROWS, COLUMNS = 24, 128
ROUNDED = [Int8()] + [Int4(group_size=size) for size in (32, 64, 128)]
# Factors need rows enough for the groups to divide the rank.
TALL, RANK = 96, 32
RANKED = [LowRank(rank=RANK, factor=form) for form in (Dense(), Int8(), Int4(group_size=32))]
SPARSE = {share: of_share(TALL, COLUMNS, 16, 4, share) for share in (0.25, 0.5)}


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def term(seed: int, rows: int = ROWS) -> tuple[Tensor, Tensor]:
    """Correlated inputs, of which there are a few strong directions; rows that differ."""
    inputs = drawn(512, 12, seed=seed) @ drawn(12, COLUMNS, seed=seed + 1)
    inputs += 0.3 * drawn(512, COLUMNS, seed=seed + 2)
    return inputs.T @ inputs / 512, drawn(rows, seed=seed + 3).square()


def weight(seed: int = 0, rows: int = ROWS) -> Tensor:
    return 0.1 * drawn(rows, COLUMNS, seed=seed)


def codes_of(stored: StoredWeight) -> Tensor:
    """int8 [rows, columns]."""
    return stored.unpacked if isinstance(stored.format, Int4) else stored.codes


def restored(codes: Tensor, scale: Tensor) -> Tensor:
    scale = scale.double().reshape(len(codes), -1)
    return codes.double() * scale.repeat_interleave(codes.shape[1] // scale.shape[1], 1)


def loss_of(given: Tensor, form: Format, metric: Metric, rounding: str = "gptq") -> float:
    return metric.loss(form.fit(given, metric, rounding).restore() - given)


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
@pytest.mark.parametrize("form", ROUNDED, ids=str)
def test_what_is_restored_is_codes_times_scales(form, rounding):
    stored = form.fit(weight(), Metric([term(0)]), rounding)
    codes, found = codes_of(stored), stored.restore()
    assert stored.format == form
    torch.testing.assert_close(found.double(), restored(codes, stored.scale))
    assert codes.dtype == torch.int8
    assert stored.scale.dtype == found.dtype == torch.float32
    low, high = (-127, 127) if form == Int8() else (-8, 7)
    assert low <= int(codes.min()) and int(codes.max()) <= high


def test_dense_keeps_the_weight():
    kept = Dense().fit(weight(), Metric([term(0)]), "gptq")
    assert isinstance(kept, DenseWeight)
    assert torch.equal(kept.restore(), weight())


def test_nearest_int8_has_a_scale_per_row():
    rounded = Int8().fit(weight(), Metric([term(0)]), "nearest")
    assert rounded.scale.shape == (ROWS,)
    error = (restored(rounded.codes, rounded.scale) - weight().double()).abs()
    assert bool((error <= rounded.scale[:, None] / 2 * (1 + 1e-6)).all())


def test_int8_by_gptq_loses_no_more_than_to_nearest():
    metric = Metric([term(0)])
    nearest = Int8().fit(weight(), metric, "nearest")
    corrected = Int8().fit(weight(), metric, "gptq")
    assert torch.equal(corrected.scale, nearest.scale)
    assert metric.loss(corrected.restore() - weight()) < metric.loss(nearest.restore() - weight())


@pytest.mark.parametrize("form", ROUNDED[1:], ids=str)
def test_nearest_int4_has_the_nearest_codes_of_its_scales(form):
    rounded = form.fit(weight(), Metric([term(0)]), "nearest")
    assert rounded.scale.shape == (ROWS, COLUMNS // form.group_size)
    assert torch.equal(rounded.unpacked, integer.quantize_groups(weight(), rounded.scale))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("form", ROUNDED[1:], ids=str)
def test_gptq_loses_no_more_than_nearest(form, seed):
    metric, given = Metric([term(100 * seed)]), weight(seed)
    found = loss_of(given, form, metric)
    assert found < 0.9 * loss_of(given, form, metric, "nearest")
    assert found > loss_of(given, Int8(), metric)
    assert loss_of(given, form, metric, "descent") < found


def test_more_bits_and_smaller_groups_lose_less():
    losses = [loss_of(weight(), form, Metric([term(0)])) for form in ROUNDED]
    assert losses == sorted(losses)


def test_the_metrics_own_damping_is_used():
    few = drawn(5, COLUMNS, seed=3)
    terms = [(few.T @ few, torch.ones(ROWS))]
    form = Int4(group_size=32)
    codes = [form.fit(weight(), Metric(terms, share), "gptq").unpacked for share in (0.1, 1)]
    assert not torch.equal(*codes)
    factor, _ = gptq.inverse_factor(Metric(terms).hessian, 1)
    expected, _ = gptq.round_groups(weight(), factor, 32, 4)
    assert torch.equal(codes[1], expected)


# --- factors -------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", RANKED, ids=str)
def test_factors_have_the_rank_and_are_stored_alike(form):
    factored = form.fit(weight(rows=TALL), Metric([term(0, TALL)]), "gptq")
    assert isinstance(factored, LowRankWeight)
    left, right = factored.left, factored.right
    assert left.shape == left.restore().shape == (TALL, RANK)
    assert right.shape == right.restore().shape == (RANK, COLUMNS)
    assert left.format == right.format == form.factor
    torch.testing.assert_close(factored.restore(), left.restore() @ right.restore())


def test_factors_in_floating_point_lose_the_tail_and_no_more():
    hessian, output = term(0, TALL)
    losses, _ = low_rank.weighted_basis(weight(rows=TALL), hessian, output)
    found = loss_of(weight(rows=TALL), RANKED[0], Metric([(hessian, output)]))
    assert found == pytest.approx(float(losses[RANK:].sum()), rel=1e-3)


def test_factors_lose_more_with_fewer_bits_and_less_rank():
    metric, given = Metric([term(0, TALL)]), weight(rows=TALL)
    losses = [loss_of(given, form, metric) for form in RANKED]
    assert losses == sorted(losses)
    more = RANKED[1].model_copy(update={"rank": 64})
    assert loss_of(given, more, metric) < losses[1]


@pytest.mark.parametrize("form", RANKED[1:], ids=str)
def test_the_left_factor_makes_up_for_the_rounding_of_the_right_one(form):
    (hessian, output) = term(0, TALL)
    metric, given = Metric([(hessian, output)]), weight(rows=TALL)
    _, basis = low_rank.weighted_basis(given, hessian, output)
    found = form.fit(given, metric, "gptq", basis)
    # The left factor as it was for the right one that was not rounded.
    left, _ = low_rank.weighted_truncate(given, basis, output, RANK)
    right = found.right.restore()
    inner = Metric([(right @ hessian @ right.T, output)])
    kept = form.factor.fit(left, inner, "gptq")
    assert metric.loss(found.restore() - given) < metric.loss(kept.restore() @ right - given)


def test_a_basis_at_hand_is_the_one_that_is_found():
    metric, given = Metric([term(0, TALL)]), weight(rows=TALL)
    _, basis = low_rank.weighted_basis(given, *metric.terms[0])
    found = [RANKED[1].fit(given, metric, "gptq", at_hand) for at_hand in (None, basis)]
    assert torch.equal(found[0].restore(), found[1].restore())


@pytest.mark.parametrize("form", RANKED, ids=str)
def test_factors_of_a_weight_that_does_not_matter_are_finite(form):
    nothing = Metric([(torch.zeros(COLUMNS, COLUMNS), torch.zeros(TALL))])
    assert bool(torch.isfinite(form.fit(weight(rows=TALL), nothing, "gptq").restore()).all())
    half = term(0, TALL)
    half[1][::2] = 0
    stored = form.fit(weight(rows=TALL), Metric([half]), "gptq")
    assert bool(torch.isfinite(stored.restore()).all())


@pytest.mark.parametrize("share", SPARSE)
def test_the_share_of_the_groups_is_not_stored_and_the_rest_makes_up_for_it(share):
    given, metric = weight(rows=TALL), Metric([term(0, TALL)])
    stored = SPARSE[share].fit(given, metric, "gptq")
    assert stored.format == SPARSE[share]
    assert float((~stored.keep).float().mean()) == pytest.approx(share)
    assert not stored.restore().unflatten(1, (-1, 16))[~stored.keep].any()
    dropped = given * stored.keep.repeat_interleave(16, 1)
    assert metric.loss(stored.restore() - given) < metric.loss(dropped - given)


# --- bytes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", [Dense(), *ROUNDED, *RANKED, *SPARSE.values()], ids=str)
def test_stored_bytes_are_those_of_the_layer(form, dtype):
    given = weight(rows=TALL).to(dtype).float()
    stored = form.fit(given, Metric([term(0, TALL)]), "nearest").cast(dtype)
    expected = module_bytes(linear_of(stored, None))
    assert form.stored_bytes(TALL, COLUMNS, dtype.itemsize) == expected


def test_scales_mean_the_same_in_bfloat16():
    for form in ROUNDED:
        scale = form.fit(weight(), Metric([term(0)]), "gptq").scale
        assert torch.equal(scale.bfloat16().float(), scale)


def test_formats_fit_widths_that_their_groups_divide():
    four = Int4(group_size=32)
    assert four.misfit(128, 96) is None
    assert Int4(group_size=64).misfit(128, 96) == "group_size 64 must divide the width 96"
    assert Int8().misfit(128, 97) is None
    assert LowRank(rank=64, factor=four).misfit(128, 96) is None
    assert LowRank(rank=40, factor=four).misfit(128, 96) is not None
    assert LowRank(rank=32, factor=four).misfit(128, 40) is not None
    assert LowRank(rank=7, factor=Int8()).misfit(128, 97) is None
    with pytest.raises(ValidationError):
        GroupSparse(bits=9, kept=1)


# --- weights with nothing in them or nothing to lose ---------------------------------------------


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
@pytest.mark.parametrize("form", ROUNDED, ids=str)
def test_a_weight_that_does_not_matter_is_still_rounded_well(form, rounding):
    metric = Metric([(torch.zeros(COLUMNS, COLUMNS), torch.zeros(ROWS))])
    error = form.fit(weight(), metric, rounding).restore() - weight()
    assert metric.loss(error) == 0
    assert error.norm() < 0.2 * weight().norm()


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
@pytest.mark.parametrize("form", ROUNDED, ids=str)
def test_a_weight_of_zeros_stays_zero(form, rounding):
    rounded = form.fit(torch.zeros(ROWS, COLUMNS), Metric([term(0)]), rounding)
    assert not codes_of(rounded).any()


def test_the_weight_and_the_metric_are_left_as_they_were():
    for form, rows in ((ROUNDED[1], ROWS), (RANKED[2], TALL)):
        given, metric = weight(rows=rows), Metric([term(0, rows)])
        form.fit(given, metric, "gptq")
        assert torch.equal(given, weight(rows=rows))
        assert torch.equal(metric.terms[0][0], term(0, rows)[0])
        assert torch.equal(metric.terms[0][1], term(0, rows)[1])
