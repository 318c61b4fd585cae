import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from spqlm.numerics.gptq import damped, inverse_factor, row_losses
from spqlm.numerics.group_pruning import (
    choose_groups,
    group_saliency,
    nearest,
    prune_groups,
    refit_kept,
    round_kept,
)

ROWS, COLUMNS, SIZE = 6, 64, 8


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(seed: int = 0, columns: int = COLUMNS) -> Tensor:
    x = random(seed, 400, columns) @ (random(seed + 1, columns, columns) + 2 * torch.eye(columns))
    return x.T @ x / len(x)


def restored(codes: Tensor, scale: Tensor, zero: Tensor | None, keep: Tensor) -> Tensor:
    values = codes.unflatten(1, (keep.shape[1], -1)) * scale[..., None]
    if zero is not None:
        values = values + zero[..., None]
    return (values * keep[..., None]).flatten(1)


def test_joint_saliency_is_what_dropping_costs_when_the_rest_is_refitted():
    weight, hessian, output = random(3, ROWS, COLUMNS), correlated(), random(4, ROWS).square()
    found = group_saliency(weight, hessian, output, SIZE, "joint", 0.1)
    metric = damped(hessian, 0.1).double()
    for group in range(COLUMNS // SIZE):
        gone = torch.zeros(COLUMNS, dtype=torch.bool)
        gone[group * SIZE : (group + 1) * SIZE] = True
        # The best change of the others solves a least-squares problem.
        change = torch.zeros(ROWS, COLUMNS, dtype=torch.float64)
        change[:, gone] = -weight[:, gone].double()
        inner, cross = metric[~gone][:, ~gone], metric[~gone][:, gone]
        change[:, ~gone] = torch.linalg.solve(inner, cross @ weight[:, gone].double().T).T
        cost = 0.5 * output * ((change @ metric) * change).sum(1)
        assert torch.allclose(found[:, group].double(), cost, rtol=1e-3)


def test_published_saliencies_are_their_formulas():
    weight, hessian, output = random(3, ROWS, COLUMNS), correlated(), random(4, ROWS).square()
    inverse = torch.linalg.inv(damped(hessian, 0.1).double())
    published = (weight.double().square() / inverse.diagonal().square()) * output[:, None]
    found = group_saliency(weight, hessian, output, SIZE, "hessian", 0.1)
    expected = published.unflatten(1, (-1, SIZE)).mean(2)
    assert torch.allclose(found.double(), expected, rtol=1e-3)
    first = 0.5 * output[:, None] * weight.square() * hessian.diagonal()
    found = group_saliency(weight, hessian, output, SIZE, "first_order", 0.1)
    assert torch.allclose(found, first.unflatten(1, (-1, SIZE)).sum(2), rtol=1e-4)


@given(
    sparsity=st.floats(0, 0.99),
    pattern=st.sampled_from(["row_balanced", "free"]),
    seed=st.integers(0, 9),
)
def test_the_share_goes_and_no_row_is_emptied(sparsity, pattern, seed):
    saliency = random(seed, 7, 12).square()
    keep = choose_groups(saliency, sparsity, pattern)
    assert bool(keep.any(1).all())
    if pattern == "row_balanced":
        assert set(keep.sum(1).tolist()) == {12 - int(12 * sparsity)}
        for row, kept in zip(saliency, keep, strict=True):
            assert kept.all() or row[kept].min() >= row[~kept].max()
    else:
        assert int((~keep).sum()) == min(int(7 * 12 * sparsity), 7 * 11)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zero_point", [False, True])
def test_what_is_kept_makes_up_for_what_goes(bits, zero_point):
    weight, hessian, alike = random(3, ROWS, COLUMNS), correlated(), torch.ones(ROWS)
    keep = choose_groups(group_saliency(weight, hessian, alike, SIZE, "joint"), 0.5, "free")
    factor, _ = inverse_factor(hessian)
    codes, scale, zero = round_kept(weight, factor, keep, bits, zero_point=zero_point)
    assert (zero is not None) == zero_point
    if bits == 4:
        assert int(codes.min()) >= -8 and int(codes.max()) <= 7
    found = row_losses(restored(codes, scale, zero, keep) - weight, hessian, alike).sum()
    zeros = torch.zeros_like(scale) if zero is None else zero
    plain = restored(nearest(weight, scale, zeros, bits), scale, zero, keep)
    assert found < 0.8 * row_losses(plain - weight, hessian, alike).sum()


def test_with_every_group_kept_8_bits_lose_next_to_nothing():
    weight, hessian = random(3, ROWS, COLUMNS), correlated()
    keep = torch.ones(ROWS, COLUMNS // SIZE, dtype=torch.bool)
    factor, _ = inverse_factor(hessian)
    codes, scale, _ = round_kept(weight, factor, keep, 8)
    error = restored(codes, scale, None, keep) - weight
    assert float(error.abs().max()) < 0.02 * float(weight.abs().max())


@pytest.mark.parametrize("zero_point", [False, True])
def test_a_group_of_zeros_is_no_trouble(zero_point):
    weight = random(3, ROWS, COLUMNS)
    weight[:, :SIZE] = 0
    keep = torch.ones(ROWS, COLUMNS // SIZE, dtype=torch.bool)
    factor, _ = inverse_factor(torch.eye(COLUMNS))
    codes, scale, zero = round_kept(weight, factor, keep, 4, zero_point=zero_point)
    found = restored(codes, scale, zero, keep)
    assert bool(torch.isfinite(found).all()) and float(found[:, :SIZE].abs().max()) < 1e-4


def test_refitting_solves_each_row_for_what_it_keeps():
    weight, metric = random(3, ROWS, COLUMNS), damped(correlated(), 0.1)
    keep = torch.rand(ROWS, COLUMNS // SIZE, generator=torch.Generator().manual_seed(0)) < 0.6
    keep[:, 0] = True
    found = refit_kept(weight, metric, keep, weight, iterations=60)
    exact = metric.double()
    for row in range(ROWS):
        full = keep[row].repeat_interleave(SIZE)
        right = (exact @ weight[row].double())[full]
        solution = torch.linalg.solve(exact[full][:, full], right)
        assert torch.allclose(found[row, full].double(), solution, atol=1e-3)
        assert not found[row, ~full].any()


@pytest.mark.parametrize("pattern", ["row_balanced", "free"])
def test_pruning_in_rounds_loses_less_than_at_once(pattern):
    weight, hessian, output = random(3, 32, COLUMNS), correlated(), random(4, 32).square()
    losses = []
    for rounds in (1, 4):
        keep, found = prune_groups(
            weight, hessian, output, SIZE, 0.5, pattern=pattern, rounds=rounds
        )
        assert int((~keep).sum()) == 32 * COLUMNS // SIZE // 2
        assert not found.unflatten(1, (-1, SIZE))[~keep].any()
        losses.append(float(row_losses(found - weight, hessian, output).sum()))
    keep = choose_groups(group_saliency(weight, hessian, output, SIZE, "first_order"), 0.5, pattern)
    dropped = weight * keep.repeat_interleave(SIZE, 1)
    assert losses[1] < losses[0] < row_losses(dropped - weight, hessian, output).sum()


def test_nothing_is_dropped_at_sparsity_zero():
    weight, hessian = random(3, ROWS, COLUMNS), correlated()
    keep, found = prune_groups(weight, hessian, torch.ones(ROWS), SIZE, 0.0)
    assert bool(keep.all()) and torch.allclose(found, weight, atol=1e-6)
