import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from spqlm.allocation.storage import Factored, Kept, Option, Rounded, Sparse, factorise, store
from spqlm.modules.group_sparse_linear import GroupSparseLinear
from spqlm.modules.int4_linear import Int4Linear
from spqlm.modules.low_rank_linear import LowRankLinear
from spqlm.modules.ops import linear_from, module_bytes
from spqlm.modules.quantized_linear import QuantizedLinear
from spqlm.numerics import gptq, group_sparse, integer, low_rank
from spqlm.numerics.metric import Metric

ROWS, COLUMNS = 24, 128
OPTIONS = [Option(bits=8)] + [Option(bits=4, group_size=size) for size in (32, 64, 128)]
# Factors need rows enough for the groups to divide the rank.
TALL, RANK = 96, 32
RANKED = [
    Option(bits=16, rank=RANK),
    Option(bits=8, rank=RANK),
    Option(bits=4, group_size=32, rank=RANK),
]


SPARSE = [Option(bits=4, group_size=16, sparsity=share) for share in (0.25, 0.5)]


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def term(seed: int, rows: int = ROWS) -> tuple[Tensor, Tensor]:
    """Correlated inputs, of which there are a few strong directions; rows that differ."""
    inputs = drawn(512, 12, seed=seed) @ drawn(12, COLUMNS, seed=seed + 1)
    inputs += 0.3 * drawn(512, COLUMNS, seed=seed + 2)
    return inputs.T @ inputs / 512, drawn(rows, seed=seed + 3).square()


def weight(seed: int = 0, rows: int = ROWS) -> Tensor:
    return 0.1 * drawn(rows, COLUMNS, seed=seed)


def restored(codes: Tensor, scale: Tensor) -> Tensor:
    scale = scale.double().reshape(len(codes), -1)
    return codes.double() * scale.repeat_interleave(codes.shape[1] // scale.shape[1], 1)


def defined_loss(error: Tensor, terms: list[tuple[Tensor, Tensor]]) -> float:
    """½ Σ_terms Σ_i o_i ΔW_i H ΔW_iᵀ, row by row in float64."""
    total = 0.0
    for hessian, output in terms:
        for row, share in zip(error.double(), output.double(), strict=True):
            total += 0.5 * float(share * (row @ hessian.double() @ row))
    return total


def loss_of(given: Tensor, option: Option, metric: Metric, rounding: str = "gptq") -> float:
    return metric.loss(store(given, option, metric, rounding).restored - given)


@pytest.mark.parametrize("count", [1, 2])
def test_the_loss_is_its_definition(count):
    terms = [term(10 * index) for index in range(count)]
    error = 0.01 * drawn(ROWS, COLUMNS, seed=9)
    assert Metric(terms).loss(error) == pytest.approx(defined_loss(error, terms), rel=1e-3)


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_what_is_restored_is_codes_times_scales(option, rounding):
    rounded = store(weight(), option, Metric([term(0)]), rounding)
    assert isinstance(rounded, Rounded)
    torch.testing.assert_close(rounded.restored.double(), restored(rounded.codes, rounded.scale))
    assert rounded.codes.dtype == torch.int8
    assert rounded.scale.dtype == rounded.restored.dtype == torch.float32
    low, high = (-127, 127) if option.bits == 8 else (-8, 7)
    assert low <= int(rounded.codes.min()) and int(rounded.codes.max()) <= high


def test_sixteen_bits_keep_the_weight():
    kept = store(weight(), Option(bits=16), Metric([term(0)]), "gptq")
    assert isinstance(kept, Kept)
    assert torch.equal(kept.restored, weight())


def test_nearest_int8_has_a_scale_per_row():
    rounded = store(weight(), Option(bits=8), Metric([term(0)]), "nearest")
    assert rounded.scale.shape == (ROWS,)
    error = (restored(rounded.codes, rounded.scale) - weight().double()).abs()
    assert bool((error <= rounded.scale[:, None] / 2 * (1 + 1e-6)).all())


def test_int8_by_gptq_loses_no_more_than_to_nearest():
    metric = Metric([term(0)])
    nearest = store(weight(), Option(bits=8), metric, "nearest")
    corrected = store(weight(), Option(bits=8), metric, "gptq")
    assert torch.equal(corrected.scale, nearest.scale)
    assert metric.loss(corrected.restored - weight()) < metric.loss(nearest.restored - weight())


@pytest.mark.parametrize("option", OPTIONS[1:], ids=str)
def test_nearest_int4_has_the_nearest_codes_of_its_scales(option):
    rounded = store(weight(), option, Metric([term(0)]), "nearest")
    assert rounded.scale.shape == (ROWS, COLUMNS // option.group_size)
    assert torch.equal(rounded.codes, integer.quantize_groups(weight(), rounded.scale))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("option", OPTIONS[1:], ids=str)
def test_gptq_loses_no_more_than_nearest(option, seed):
    metric, given = Metric([term(100 * seed)]), weight(seed)
    found = loss_of(given, option, metric)
    assert found < 0.9 * loss_of(given, option, metric, "nearest")
    assert found > loss_of(given, Option(bits=8), metric)


def test_more_bits_and_smaller_groups_lose_less():
    losses = [loss_of(weight(), option, Metric([term(0)])) for option in OPTIONS]
    assert losses == sorted(losses)


def test_the_metrics_own_damping_is_used():
    few = drawn(5, COLUMNS, seed=3)
    terms = [(few.T @ few, torch.ones(ROWS))]
    codes = [store(weight(), OPTIONS[1], Metric(terms, share), "gptq").codes for share in (0.1, 1)]
    assert not torch.equal(*codes)
    expected, _ = gptq.round_int4(weight(), Metric(terms).hessian, 32, 1)
    assert torch.equal(codes[1], expected)


# --- factors -------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", RANKED, ids=str)
def test_factors_have_the_rank_and_are_stored_alike(option):
    factored = store(weight(rows=TALL), option, Metric([term(0, TALL)]), "gptq")
    assert isinstance(factored, Factored)
    left, right = factored.left, factored.right
    assert left.restored.shape == (TALL, RANK)
    assert right.restored.shape == (RANK, COLUMNS)
    assert isinstance(left, Kept) == isinstance(right, Kept) == (option.bits == 16)
    torch.testing.assert_close(factored.restored, left.restored @ right.restored)


def test_factors_in_floating_point_lose_the_tail_and_no_more():
    hessian, output = term(0, TALL)
    losses, _ = low_rank.weighted_basis(weight(rows=TALL), hessian, output)
    found = loss_of(weight(rows=TALL), RANKED[0], Metric([(hessian, output)]))
    assert found == pytest.approx(float(losses[RANK:].sum()), rel=1e-3)


def test_factors_lose_more_with_fewer_bits_and_less_rank():
    metric, given = Metric([term(0, TALL)]), weight(rows=TALL)
    losses = [loss_of(given, option, metric) for option in RANKED]
    assert losses == sorted(losses)
    more = RANKED[1].model_copy(update={"rank": 64})
    assert loss_of(given, more, metric) < losses[1]


@pytest.mark.parametrize("option", RANKED[1:], ids=str)
def test_the_left_factor_makes_up_for_the_rounding_of_the_right_one(option):
    (hessian, output) = term(0, TALL)
    metric, given = Metric([(hessian, output)]), weight(rows=TALL)
    _, basis = low_rank.weighted_basis(given, hessian, output)
    found = factorise(given, basis, option, metric, "gptq")
    # The left factor as it was for the right one that was not rounded.
    left, _ = low_rank.weighted_truncate(given, basis, output, RANK)
    right = found.right.restored
    whole = option.model_copy(update={"rank": None})
    kept = store(left, whole, Metric([(right @ hessian @ right.T, output)]), "gptq")
    assert metric.loss(found.restored - given) < metric.loss(kept.restored @ right - given)


@pytest.mark.parametrize("option", RANKED, ids=str)
def test_factors_of_a_weight_that_does_not_matter_are_finite(option):
    nothing = Metric([(torch.zeros(COLUMNS, COLUMNS), torch.zeros(TALL))])
    stored = store(weight(rows=TALL), option, nothing, "gptq")
    assert bool(torch.isfinite(stored.restored).all())
    half = term(0, TALL)
    half[1][::2] = 0
    stored = store(weight(rows=TALL), option, Metric([half]), "gptq")
    assert bool(torch.isfinite(stored.restored).all())


@pytest.mark.parametrize("option", SPARSE, ids=str)
def test_the_share_of_the_groups_is_not_stored_and_the_rest_makes_up_for_it(option):
    given, metric = weight(rows=TALL), Metric([term(0, TALL)])
    stored = store(given, option, metric, "gptq")
    assert float((~stored.keep).float().mean()) == pytest.approx(option.sparsity)
    assert not stored.restored.unflatten(1, (-1, 16))[~stored.keep].any()
    dropped = given * stored.keep.repeat_interleave(16, 1)
    assert metric.loss(stored.restored - given) < metric.loss(dropped - given)


# --- bytes ---------------------------------------------------------------------------------------


def layer_of(stored, dtype: torch.dtype):
    if isinstance(stored, Factored):
        return LowRankLinear(layer_of(stored.right, dtype), layer_of(stored.left, dtype))
    if isinstance(stored, Kept):
        return linear_from(stored.restored.to(dtype), None)
    if isinstance(stored, Sparse):
        packed = group_sparse.pack(stored.codes, stored.scale.to(dtype), None, stored.keep, 4)
        return GroupSparseLinear.from_weight(packed, None)
    kind = QuantizedLinear.from_tensors if stored.scale.ndim == 1 else Int4Linear.from_codes
    return kind(stored.codes, stored.scale.to(dtype), None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("option", [Option(bits=16), *OPTIONS, *RANKED, *SPARSE], ids=str)
def test_stored_bytes_are_those_of_the_layer(option, dtype):
    stored = store(weight(rows=TALL).to(dtype), option, Metric([term(0, TALL)]), "nearest")
    expected = module_bytes(layer_of(stored, dtype))
    assert option.stored_bytes(TALL, COLUMNS, dtype.itemsize) == expected


def test_scales_mean_the_same_in_bfloat16():
    for option in OPTIONS:
        scale = store(weight(), option, Metric([term(0)]), "gptq").scale
        assert torch.equal(scale.bfloat16().float(), scale)


def test_options_fit_widths_that_their_groups_divide():
    assert Option(bits=4, group_size=32).fits(96)
    assert not Option(bits=4, group_size=64).fits(96)
    assert Option(bits=8).fits(97)
    assert Option(bits=4, group_size=32, rank=64).fits(96)
    assert not Option(bits=4, group_size=32, rank=40).fits(96)
    assert not Option(bits=4, group_size=32, rank=32).fits(40)
    assert Option(bits=8, rank=7).fits(97)
    with pytest.raises(ValidationError):
        Option(bits=3)


# --- metrics -------------------------------------------------------------------------------------


def test_the_matrix_of_two_terms_weighs_each_by_its_mean_row():
    (first, rows), (second, others) = terms = [term(0), term(10)]
    expected = first * rows.mean() + second * others.mean()
    torch.testing.assert_close(Metric(terms).hessian, expected)
    torch.testing.assert_close(Metric(terms[:1]).hessian, first * rows.mean())
    torch.testing.assert_close(Metric(terms).output, rows + others)


def test_what_is_left_of_a_metric_prices_what_is_left_of_a_weight():
    metric = Metric([term(0), term(10)], damping=0.7)
    error, index = 0.01 * drawn(ROWS, COLUMNS, seed=9), torch.arange(0, ROWS, 3)
    some = metric.rows(index)
    rows = torch.zeros_like(error)
    rows[index] = error[index]
    assert some.loss(error[index]) == pytest.approx(metric.loss(rows), rel=1e-4)
    index = torch.arange(1, COLUMNS, 5)
    columns = torch.zeros_like(error)
    columns[:, index] = error[:, index]
    left = metric.columns(index)
    assert left.loss(error[:, index]) == pytest.approx(metric.loss(columns), rel=1e-4)
    assert left.damping == some.damping == 0.7


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_a_weight_that_does_not_matter_is_still_rounded_well(option, rounding):
    metric = Metric([(torch.zeros(COLUMNS, COLUMNS), torch.zeros(ROWS))])
    error = store(weight(), option, metric, rounding).restored - weight()
    assert metric.loss(error) == 0
    assert error.norm() < 0.2 * weight().norm()


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_a_weight_of_zeros_stays_zero(option, rounding):
    rounded = store(torch.zeros(ROWS, COLUMNS), option, Metric([term(0)]), rounding)
    assert not rounded.codes.any()


def test_the_weight_and_the_metric_are_left_as_they_were():
    for option, rows in ((OPTIONS[1], ROWS), (RANKED[2], TALL)):
        given, metric = weight(rows=rows), Metric([term(0, rows)])
        store(given, option, metric, "gptq")
        assert torch.equal(given, weight(rows=rows))
        assert torch.equal(metric.terms[0][0], term(0, rows)[0])
        assert torch.equal(metric.terms[0][1], term(0, rows)[1])
