import pytest
import torch
from torch import Tensor

from spqlm.numerics import metric as metrics
from spqlm.numerics.metric import Metric

ROWS, COLUMNS = 24, 128


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def term(seed: int) -> tuple[Tensor, Tensor]:
    """Correlated inputs, of which there are a few strong directions; rows that differ."""
    inputs = drawn(512, 12, seed=seed) @ drawn(12, COLUMNS, seed=seed + 1)
    inputs += 0.3 * drawn(512, COLUMNS, seed=seed + 2)
    return inputs.T @ inputs / 512, drawn(ROWS, seed=seed + 3).square()


def defined_loss(error: Tensor, terms: list[tuple[Tensor, Tensor]]) -> float:
    """½ Σ_terms Σ_i o_i ΔW_i H ΔW_iᵀ, row by row in float64."""
    total = 0.0
    for hessian, output in terms:
        for row, share in zip(error.double(), output.double(), strict=True):
            total += 0.5 * float(share * (row @ hessian.double() @ row))
    return total


@pytest.mark.parametrize("count", [1, 2])
def test_the_loss_is_its_definition(count):
    terms = [term(10 * index) for index in range(count)]
    error = 0.01 * drawn(ROWS, COLUMNS, seed=9)
    assert Metric(terms).loss(error) == pytest.approx(defined_loss(error, terms), rel=1e-3)


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


def test_rows_are_rounded_by_the_matrix_of_all_rows():
    whole = Metric([(torch.eye(4) * 2, torch.tensor([1.0, 3.0])), (torch.eye(4), torch.ones(2))])
    some = whole.rows(torch.tensor([1]))
    assert some.hessian is whole.hessian and some.factor is whole.factor
    error = torch.arange(8.0).reshape(2, 4)
    torch.testing.assert_close(some.row_losses(error[1:]), whole.row_losses(error)[1:])
    narrow = some.columns(torch.tensor([0, 2]))
    assert narrow.hessian.shape == (2, 2)


def test_the_energy_of_a_weight_is_its_loss_without_what_lies_off_the_diagonal():
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    metric = Metric([(x.T @ x, torch.tensor([1.0, 2.0]))])
    weight = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    torch.testing.assert_close(metric.energy(weight), metric.row_losses(weight))


def test_the_energy_of_many_rows_in_two_bytes_is_that_of_their_values(monkeypatch):
    monkeypatch.setattr(metrics, "SOME_ROWS", 3)
    weight = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    terms = [(torch.diag(torch.arange(4.0)), torch.arange(8.0)), (torch.eye(4), torch.ones(8))]
    metric = Metric(terms)
    torch.testing.assert_close(metric.energy(weight), metric.row_losses(weight.float()))
