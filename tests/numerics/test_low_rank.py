import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from spqlm.numerics import low_rank

SHAPES = [(12, 7), (7, 12), (9, 9), (1, 5), (5, 1), (40, 33)]
PLACES = ["left", "right", "both"]
dimensions = st.integers(1, 24)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def decaying(rows: int, columns: int, seed: int = 0) -> Tensor:
    """A matrix whose singular values are 1, 1/2, 1/4, ..."""
    n = min(rows, columns)
    left = torch.linalg.qr(random(rows, n, seed=seed))[0]
    right = torch.linalg.qr(random(columns, n, seed=seed + 1))[0]
    return left * 0.5 ** torch.arange(n) @ right.T


def spectrum(weight: Tensor) -> Tensor:
    return torch.linalg.svdvals(weight.double())


@pytest.mark.parametrize("shape", SHAPES)
def test_variances_are_the_squared_singular_values_in_descending_order(shape):
    weight = random(*shape)
    found = low_rank.variances(weight)
    assert found.dtype == torch.float64
    assert found.shape == (min(shape),)
    assert bool((found.diff() <= 0).all())
    torch.testing.assert_close(found, spectrum(weight) ** 2, rtol=1e-5, atol=1e-4)


def test_variances_are_never_negative_where_the_rank_is_deficient():
    weight = random(20, 2) @ random(2, 16)
    found = low_rank.variances(weight)
    assert bool((found >= 0).all())
    assert float(found[2:].sum() / found.sum()) < 1e-5


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("variance", [0.01, 0.5, 0.9, 0.96, 0.999])
def test_rank_is_the_least_that_retains_the_variance_in_float64(shape, variance):
    weight = random(*shape, seed=3)
    rank = low_rank.rank_for_variance(low_rank.variances(weight), variance)
    share = (spectrum(weight) ** 2).cumsum(0)
    share /= share[-1].clone()
    assert rank == int((share < variance).sum()) + 1


@given(rows=dimensions, columns=dimensions, seed=st.integers(0, 1000), variance=st.floats(0.01, 1))
def test_rank_is_sufficient_and_one_less_is_not(rows, columns, seed, variance):
    weight = random(rows, columns, seed=seed)
    rank = low_rank.rank_for_variance(low_rank.variances(weight), variance)
    squares = spectrum(weight) ** 2
    share = squares.cumsum(0) / squares.sum()
    assert 1 <= rank <= min(rows, columns)
    assert share[rank - 1] >= variance - 1e-5
    if variance < 1 and rank > 1:
        assert share[rank - 2] < variance + 1e-5


def test_rank_counts_exactly_on_a_known_spectrum():
    variances = torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64)
    assert low_rank.rank_for_variance(variances, 0.39) == 1
    assert low_rank.rank_for_variance(variances, 0.4) == 1
    assert low_rank.rank_for_variance(variances, 0.41) == 2
    assert low_rank.rank_for_variance(variances, 0.95) == 4


def test_variance_of_one_keeps_the_full_rank_even_where_the_tail_is_zero():
    variances = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    assert low_rank.rank_for_variance(variances, 1.0) == 4
    assert low_rank.rank_for_variance(variances, 1 - 1e-9) == 2


def test_a_zero_matrix_has_rank_one():
    assert low_rank.rank_for_variance(low_rank.variances(torch.zeros(4, 6)), 0.96) == 1


@pytest.mark.parametrize("variance", [0.0, -0.1, 1.0000001, 96, float("nan"), float("inf")])
def test_variance_outside_its_range_is_refused(variance):
    with pytest.raises(ValueError, match="variance must lie in"):
        low_rank.rank_for_variance(torch.ones(3, dtype=torch.float64), variance)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("place", PLACES)
def test_truncation_error_is_the_tail_of_the_spectrum(shape, place):
    weight = random(*shape, seed=5)
    for rank in {1, max(1, min(shape) // 2), min(shape)}:
        left, right = low_rank.truncate(weight, rank, place)
        assert left.shape == (shape[0], rank)
        assert right.shape == (rank, shape[1])
        error = torch.linalg.norm(weight.double() - left.double() @ right.double())
        tail = spectrum(weight)[rank:].square().sum().sqrt()
        assert float(error - tail) < 1e-5 * float(torch.linalg.norm(weight))


@given(rows=dimensions, columns=dimensions, seed=st.integers(0, 1000), data=st.data())
def test_every_placement_gives_the_same_best_approximation(rows, columns, seed, data):
    weight = random(rows, columns, seed=seed)
    rank = data.draw(st.integers(1, min(rows, columns)))
    products = [
        left @ right for left, right in (low_rank.truncate(weight, rank, p) for p in PLACES)
    ]
    values = spectrum(weight)
    tail = values[rank:].square().sum().sqrt()
    for product in products:
        torch.testing.assert_close(product, products[0], rtol=1e-3, atol=2e-4)
        assert torch.linalg.norm(weight - product) <= tail + 1e-4 * values[0]


@pytest.mark.parametrize("shape", [(14, 8), (8, 14), (8, 8)])
@pytest.mark.parametrize("place", PLACES)
def test_singular_values_lie_in_the_factor_that_was_asked_for(shape, place):
    weight = decaying(*shape)
    left, right = low_rank.truncate(weight, 5, place)
    values = spectrum(weight)[:5].float()
    powers = {"left": (1.0, 0.0), "right": (0.0, 1.0), "both": (0.5, 0.5)}[place]
    for gram, power in zip((left.T @ left, right @ right.T), powers, strict=True):
        torch.testing.assert_close(gram, torch.diag(values ** (2 * power)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shape", [(14, 8), (8, 14)])
def test_singular_values_go_right_unless_said_otherwise(shape):
    weight = decaying(*shape)
    for default, right in zip(
        low_rank.truncate(weight, 3), low_rank.truncate(weight, 3, "right"), strict=True
    ):
        assert torch.equal(default, right)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_factorised_in_float32(dtype):
    weight = random(24, 16).to(dtype)
    left, right = low_rank.truncate(weight, 6)
    assert left.dtype == right.dtype == torch.float32
    expected = low_rank.truncate(weight.float(), 6)
    assert torch.equal(left, expected[0])
    assert torch.equal(right, expected[1])
    assert torch.equal(low_rank.variances(weight), low_rank.variances(weight.float()))


@pytest.mark.parametrize("shape", [(14, 8), (8, 14), (8, 8)])
@pytest.mark.parametrize("place", PLACES)
def test_factors_own_their_memory_and_nothing_more(shape, place):
    for factor in low_rank.truncate(random(*shape), 3, place):
        assert factor.is_contiguous()
        assert factor.untyped_storage().nbytes() == factor.numel() * 4


@pytest.mark.parametrize("shape", [(400, 24), (24, 400), (24, 24)])
@pytest.mark.parametrize("place", PLACES)
def test_a_rank_beyond_the_true_rank_leaves_the_factors_moderate(shape, place):
    # The rank is snapped up to a multiple, so this happens; a factor with a few huge entries would
    # lose all the others when it is quantised.
    weight = random(shape[0], 2, seed=1) @ random(2, shape[1], seed=2)
    left, right = low_rank.truncate(weight, 20, place)
    bound = 1.001 * float(torch.linalg.matrix_norm(weight, 2))
    assert float(left.abs().max()) <= max(bound, 1.001)
    assert float(right.abs().max()) <= max(bound, 1.001)
    torch.testing.assert_close(left @ right, weight, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("place", PLACES)
def test_a_zero_matrix_is_factorised_to_zero(place):
    left, right = low_rank.truncate(torch.zeros(6, 4), 2, place)
    assert torch.equal(left @ right, torch.zeros(6, 4))


def test_rank_is_rounded_up_where_that_still_saves():
    # 64 x 64: a rank saves below 32.
    assert low_rank.snap_rank(9, 64, 64, 8) == 16
    assert low_rank.snap_rank(16, 64, 64, 8) == 16
    assert low_rank.snap_rank(1, 64, 64, 1) == 1


def test_exact_rank_is_kept_where_only_that_saves():
    assert low_rank.snap_rank(25, 64, 64, 32) == 25
    assert low_rank.snap_rank(31, 64, 64, 32) == 31


def test_layer_stays_dense_where_no_rank_saves():
    # Equal bytes are no saving.
    assert low_rank.snap_rank(32, 64, 64, 32) is None
    assert low_rank.snap_rank(64, 64, 64, 32) is None
    assert low_rank.snap_rank(1, 2, 2, 1) is None


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 64), st.data())
def test_snapped_rank_saves_and_is_never_below_the_rank(in_features, out_features, multiple, data):
    rank = data.draw(st.integers(1, min(in_features, out_features)))
    snapped = low_rank.snap_rank(rank, in_features, out_features, multiple)
    dense, per_rank = in_features * out_features, in_features + out_features
    if snapped is None:
        assert rank * per_rank >= dense
    else:
        assert snapped * per_rank < dense
        assert snapped == rank or (snapped % multiple == 0 and 0 < snapped - rank < multiple)


# --- in the metric of the loss -------------------------------------------------------------------


def metric(columns: int, seed: int = 11) -> Tensor:
    """Of inputs that differ in size and lean on each other."""
    inputs = random(4 * columns, columns, seed=seed) @ random(columns, columns, seed=seed + 1)
    return inputs.T @ inputs / len(inputs)


def weighted_loss(error: Tensor, hessian: Tensor, output: Tensor) -> float:
    """½ Σ_i o_i (ΔW H ΔWᵀ)_ii in float64."""
    error = error.double()
    return float(
        0.5 * torch.trace(torch.diag(output.double()) @ error @ hessian.double() @ error.T)
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_the_weighted_loss_of_a_rank_is_the_sum_of_the_tail(shape):
    weight, hessian = random(*shape, seed=5), metric(shape[1])
    output = random(shape[0], seed=6).square() + 0.01
    losses, basis = low_rank.weighted_basis(weight, hessian, output)
    assert losses.dtype == basis.dtype == torch.float64
    assert losses.shape == (shape[0],) and basis.shape == (shape[0], shape[0])
    assert bool((losses.diff() <= 0).all()) and float(losses[-1]) >= 0
    tiny = 1e-6 * float(losses[0])
    for rank in range(1, shape[0] + 1):
        left, right = low_rank.weighted_truncate(weight, basis, output, rank)
        assert left.shape == (shape[0], rank) and right.shape == (rank, shape[1])
        assert left.dtype == right.dtype == torch.float32
        found = weighted_loss(left.double() @ right.double() - weight.double(), hessian, output)
        assert found == pytest.approx(float(losses[rank:].sum()), rel=1e-3, abs=tiny)


@given(rows=st.integers(2, 12), columns=st.integers(2, 12), seed=st.integers(0, 999), d=st.data())
def test_no_other_factors_of_the_rank_cost_less(rows, columns, seed, d):
    rank = d.draw(st.integers(1, rows - 1))
    weight, hessian = random(rows, columns, seed=seed), metric(columns, seed + 1)
    output = random(rows, seed=seed + 2).square() + 0.01
    root = output.double().sqrt()[:, None]
    losses, basis = low_rank.weighted_basis(weight, hessian, output)
    best = float(losses[rank:].sum()) * (1 - 1e-6) - 1e-6 * float(losses[0])
    left, _ = low_rank.weighted_truncate(weight, basis, output, rank)
    for step in (1e-3, 0.1, 10.0):
        other = left.double() + step * random(rows, rank, seed=seed + 3).double()
        # The right factor that serves this left one best, whatever it is.
        solved = torch.linalg.lstsq(root * other, root * weight.double()).solution
        assert weighted_loss(other @ solved - weight.double(), hessian, output) >= best
    plain_left, plain_right = low_rank.truncate(weight, min(rank, columns))
    assert weighted_loss(plain_left @ plain_right - weight, hessian, output) >= best * (1 - 1e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_where_all_counts_alike_it_is_the_plain_decomposition(shape):
    weight = decaying(*shape)
    losses, basis = low_rank.weighted_basis(weight, torch.eye(shape[1]), torch.ones(shape[0]))
    expected = torch.zeros(shape[0], dtype=torch.float64)
    expected[: min(shape)] = 0.5 * spectrum(weight) ** 2
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-12)
    for rank in {1, min(shape) // 2 or 1}:
        left, right = low_rank.weighted_truncate(weight, basis, torch.ones(shape[0]), rank)
        plain_left, plain_right = low_rank.truncate(weight, rank)
        torch.testing.assert_close(left @ right, plain_left @ plain_right, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(left.T @ left, torch.eye(rank), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dead", [[2], [0, 1, 2, 3, 4, 5, 6]])
def test_outputs_without_gradients_stay_finite(dead):
    weight, hessian = random(7, 12), metric(12)
    output = random(7, seed=2).square()
    output[dead] = 0
    losses, basis = low_rank.weighted_basis(weight, hessian, output)
    for rank in (1, 4, 7):
        left, right = low_rank.weighted_truncate(weight, basis, output, rank)
        assert bool(torch.isfinite(left).all()) and bool(torch.isfinite(right).all())
    # With every direction there they are rows as good as any.
    torch.testing.assert_close(left @ right, weight, rtol=1e-3, atol=1e-3)
    assert bool(torch.isfinite(losses).all())


@given(dimensions, dimensions, st.integers(0, 1000), st.data())
def test_with_equal_outputs_it_is_svd_llm_s_whitening(rows, columns, seed, data):
    rank = data.draw(st.integers(1, min(rows, columns)))
    weight, hessian = random(rows, columns, seed=seed), metric(columns, seed)
    hessian += 0.1 * torch.eye(columns)
    root = torch.linalg.cholesky(hessian.double())
    u, s, v = torch.linalg.svd(weight.double() @ root, full_matrices=False)
    expected = (u[:, :rank] * s[:rank]) @ v[:rank] @ torch.linalg.inv(root)
    _, basis = low_rank.weighted_basis(weight, hessian, torch.ones(rows))
    left, right = low_rank.weighted_truncate(weight, basis, torch.ones(rows), rank)
    assert (left.shape, right.shape) == ((rows, rank), (rank, columns))
    error = (left.double() @ right.double() - expected) @ root
    assert float(error.norm()) <= 1e-5 * float((weight.double() @ root).norm())


def test_a_metric_of_zeros_and_a_weight_of_zeros_stay_finite():
    for weight, hessian in ((random(5, 8), torch.zeros(8, 8)), (torch.zeros(5, 8), metric(8))):
        losses, basis = low_rank.weighted_basis(weight, hessian, torch.ones(5))
        assert not losses.any()
        left, right = low_rank.weighted_truncate(weight, basis, torch.ones(5), 5)
        torch.testing.assert_close(left @ right, weight)


def test_half_precision_weights_are_decomposed_in_float64():
    weight, hessian, output = random(6, 9).bfloat16(), metric(9), torch.ones(6)
    found, expected = (
        low_rank.weighted_basis(w, hessian, output) for w in (weight, weight.float())
    )
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("place", PLACES)
def test_factors_of_the_largest_weights_can_be_stored(dtype, place):
    largest = torch.finfo(torch.float16).max
    weight = torch.full((16, 8), largest, dtype=torch.float16).to(dtype)
    factors = low_rank.truncate(weight, 2, place)
    left, right = (f.to(dtype) for f in low_rank.in_range(*factors, dtype))
    assert torch.allclose(left.double() @ right.double(), weight.double(), rtol=2**-7)
    if dtype != torch.float16:
        assert all(map(torch.equal, (left, right), (f.to(dtype) for f in factors)))


@pytest.mark.parametrize("place", PLACES)
def test_in_float16_nothing_between_factors_is_beyond_what_they_give(place):
    weight, inputs = decaying(32, 24), random(24, 500, seed=3)
    left, right = low_rank.in_range(*low_rank.truncate(weight, 5, place), torch.float16)
    between, given = right @ inputs, left @ right @ inputs
    assert bool((between.abs().amax(0) <= given.abs().amax(0)).all())
    torch.testing.assert_close(
        left @ right, low_rank.truncate(weight, 5)[0] @ (low_rank.truncate(weight, 5)[1])
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e-20, 1.0, 1e20])
def test_factors_within_the_range_stay_as_they_are(dtype, size):
    factors = low_rank.truncate(decaying(8, 12) * size, 3)
    assert all(a is b for a, b in zip(low_rank.in_range(*factors, dtype), factors, strict=True))
