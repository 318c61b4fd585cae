import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from spqlm.numerics.elimination import elimination_order, refit
from spqlm.numerics.gptq import damped, predicted_loss

ROWS, COLUMNS = 7, 24


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def correlated(columns: int = COLUMNS, seed: int = 1) -> Tensor:
    """A metric whose inputs differ in size and lean on each other."""
    inputs = random(4 * columns, columns // 2, seed=seed) @ random(columns // 2, columns, seed=2)
    inputs += 0.3 * random(4 * columns, columns, seed=seed + 2) * torch.linspace(0.3, 2, columns)
    return inputs.T @ inputs / len(inputs)


def best_loss(weight: Tensor, hessian: Tensor, output: Tensor, removed: list[int]) -> float:
    """Σ_i o_i min ΔW_i H ΔW_iᵀ with the removed inputs at zero, by least squares."""
    kept = [index for index in range(len(hessian)) if index not in removed]
    root = torch.linalg.cholesky(hessian, upper=True)
    gone = root[:, removed] @ weight[:, removed].T
    solved = torch.linalg.lstsq(root[:, kept], gone).solution
    return float((output * (gone - root[:, kept] @ solved).square().sum(0)).sum())


def greedy(weight: Tensor, hessian: Tensor, output: Tensor, count: int, channels: int) -> list[int]:
    """One unit after the other, each time the one whose loss makes the total least."""
    removed: list[int] = []
    for _ in range(count):
        units = [u for u in range(weight.shape[1] // channels) if u not in removed]
        prices = [
            best_loss(weight, hessian, output, columns_of([*removed, unit], channels))
            for unit in units
        ]
        removed.append(units[min(range(len(units)), key=prices.__getitem__)])
    return removed


def columns_of(units: list[int], channels: int) -> list[int]:
    return [unit * channels + offset for unit in units for offset in range(channels)]


@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("seed", range(3))
def test_the_order_is_that_of_the_least_loss_with_all_others_refitted(seed, channels):
    weight, output = random(ROWS, COLUMNS, seed=10 + seed), random(ROWS, seed=seed).square()
    hessian, count = correlated(seed=100 + seed), COLUMNS // channels // 2
    found = elimination_order(weight, hessian, output, count, channels, damping=1e-9)
    assert found.dtype == torch.int64
    assert found.tolist() == greedy(weight, damped(hessian, 1e-9), output, count, channels)


def test_outputs_without_gradients_have_no_say():
    weight, hessian = random(ROWS, COLUMNS), correlated()
    output = random(ROWS, seed=3).square()
    output[2] = 0
    expected = elimination_order(weight, hessian, output, 12)
    weight[2] *= 1e3
    assert torch.equal(elimination_order(weight, hessian, output, 12), expected)


@given(
    units=st.integers(1, 40), channels=st.integers(1, 3), seed=st.integers(0, 99), data=st.data()
)
def test_the_order_is_of_distinct_units(units, channels, seed, data):
    count = data.draw(st.integers(0, units))
    weight = random(3, units * channels, seed=seed)
    inputs = random(5, units * channels, seed=seed + 1)
    order = elimination_order(weight, inputs.T @ inputs, torch.ones(3), count, channels)
    assert len(order) == count
    assert len(set(order.tolist())) == count
    assert all(0 <= unit < units for unit in order.tolist())


@pytest.mark.parametrize("columns", [24, 200])
def test_fewer_are_the_first_of_more(columns):
    # In steps of several at once where there are many.
    weight, hessian, output = random(ROWS, columns), correlated(columns), torch.ones(ROWS)
    whole = elimination_order(weight, hessian, output, columns)
    for count in (0, 1, 5, columns // 2):
        assert torch.equal(elimination_order(weight, hessian, output, count), whole[:count])


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("channels", [1, 2])
def test_inputs_that_never_fire_leave_first(channels, scale):
    units = COLUMNS // channels
    dead = columns_of([3, units - 2], channels)
    weight, hessian = random(ROWS, COLUMNS), correlated() * scale
    weight[:, dead] *= 10
    hessian[dead] = 0
    hessian[:, dead] = 0
    order = elimination_order(weight, hessian, torch.ones(ROWS), 5, channels)
    assert set(order[:2].tolist()) == {3, units - 2}


def test_one_of_two_equal_inputs_leaves_for_nothing():
    weight, inputs = random(ROWS, COLUMNS), random(64, COLUMNS)
    inputs[:, 5] = inputs[:, 17]
    hessian = inputs.T @ inputs / len(inputs)
    order = elimination_order(weight, hessian, torch.ones(ROWS), 2, damping=1e-6).tolist()
    assert order[0] in (5, 17)
    assert order[1] not in (5, 17)
    kept = torch.tensor([index for index in range(COLUMNS) if index != 5])
    found = refit(weight, hessian, kept, 1e-9)
    torch.testing.assert_close(found[:, 16].double(), weight[:, 5] + weight[:, 17])


@pytest.mark.parametrize("tokens", [0, 1, 5])
def test_a_singular_metric_works(tokens):
    weight, inputs = random(ROWS, COLUMNS), random(tokens, COLUMNS)
    hessian = inputs.T @ inputs
    order = elimination_order(weight, hessian, torch.ones(ROWS), COLUMNS).tolist()
    assert sorted(order) == list(range(COLUMNS))
    found = refit(weight, hessian, torch.arange(0, COLUMNS, 2))
    assert bool(torch.isfinite(found).all())
    if not tokens:
        torch.testing.assert_close(found.double(), weight[:, ::2])


@pytest.mark.parametrize("kept", [1, 9, COLUMNS - 1])
def test_refitted_weights_are_the_least_squares_solution(kept):
    weight, inputs = random(ROWS, COLUMNS), random(80, COLUMNS, seed=4)
    index = torch.randperm(COLUMNS, generator=torch.Generator().manual_seed(0))[:kept].sort().values
    found = refit(weight, inputs.T @ inputs / len(inputs), index, damping=1e-10)
    expected = torch.linalg.lstsq(inputs[:, index], inputs @ weight.T).solution.T
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_everything_kept_is_left_as_it_was():
    weight = random(ROWS, COLUMNS).float()
    assert torch.equal(refit(weight, correlated(), torch.arange(COLUMNS)), weight)


@given(
    seed=st.integers(0, 999),
    tokens=st.integers(1, 60),
    damping=st.sampled_from([1e-6, 0.1, 1.0]),
    data=st.data(),
)
def test_refitted_is_never_worse_than_cut(seed, tokens, damping, data):
    kept = sorted(data.draw(st.sets(st.integers(0, COLUMNS - 1), min_size=1)))
    weight, inputs = random(ROWS, COLUMNS, seed=seed), random(tokens, COLUMNS, seed=seed + 1)
    hessian, output = inputs.T @ inputs / tokens, random(ROWS, seed=seed).square()
    cut = -weight
    cut[:, kept] = 0
    refitted = -weight
    refitted[:, kept] += refit(weight, hessian, torch.tensor(kept), damping)
    plain = predicted_loss(cut, hessian.float(), output.float())
    assert predicted_loss(refitted, hessian.float(), output.float()) <= plain * (1 + 1e-4) + 1e-5


def test_arguments_are_left_as_they_were():
    weight, hessian, output = random(ROWS, COLUMNS), correlated(), torch.ones(ROWS)
    before = [tensor.clone() for tensor in (weight, hessian, output)]
    elimination_order(weight, hessian, output, 10)
    refit(weight, hessian, torch.arange(5))
    for tensor, expected in zip((weight, hessian, output), before, strict=True):
        assert torch.equal(tensor, expected)
