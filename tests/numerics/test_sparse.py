import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spqlm.numerics import sparse


def problem(rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    inputs = torch.randn(4 * columns, columns, generator=generator)
    inputs *= torch.rand(columns, generator=generator) * 3 + 0.1
    inputs[:, 1:] += inputs[:, :-1] * 0.5
    return weight, inputs.T @ inputs / len(inputs)


def eliminate(weight, hessian, keep, damping=0.01):
    """Optimal Brain Surgeon, column by column, each inverse computed anew in float64."""
    weight, hessian = weight.double().clone(), hessian.double()
    hessian = hessian + torch.eye(len(hessian)) * damping * hessian.diagonal().median()
    for column in range(weight.shape[1]):
        inverse = torch.linalg.inv(hessian[column:, column:])
        gone = weight[:, column] * ~keep[:, column]
        weight[:, column:] -= torch.outer(gone / inverse[0, 0], inverse[0])
        weight[:, column] *= keep[:, column]
    return weight.float()


@given(st.integers(1, 6), st.integers(2, 24), st.floats(0, 0.99), st.integers(0, 1000))
def test_sparsegpt_equals_its_definition(rows, columns, sparsity, seed):
    weight, hessian = problem(rows, columns, seed)
    pruned = sparse.sparsegpt(weight, hessian, sparsity)
    keep = pruned != 0
    assert int((~keep).sum()) == int(rows * columns * sparsity)
    assert torch.allclose(pruned, eliminate(weight, hessian, keep), atol=1e-3, rtol=1e-3)


def test_sparsegpt_crosses_blocks(monkeypatch):
    weight, hessian = problem(5, 40, 3)
    monkeypatch.setattr(sparse, "BLOCK", 16)
    pruned = sparse.sparsegpt(weight, hessian, 0.5)
    assert torch.allclose(pruned, eliminate(weight, hessian, pruned != 0), atol=1e-4)
    for start in (0, 16):
        assert int((pruned[:, start : start + 16] == 0).sum()) == 40


def test_a_row_that_cannot_be_stored_when_refitted_is_as_it_was():
    weight, hessian = problem(3, 24, 7)
    weight[1] = 60_000
    hessian = torch.full((24, 24), 0.9) + 0.1 * torch.eye(24)
    largest = torch.finfo(torch.float16).max
    free = sparse.sparsegpt(weight, hessian, 0.5, (2, 4))
    assert free.abs().amax(1)[1] > largest
    pruned = sparse.sparsegpt(weight, hessian, 0.5, (2, 4), largest=largest)
    assert torch.equal(pruned[[0, 2]], free[[0, 2]])
    assert torch.equal(pruned[1], weight[1] * (free[1] != 0))


def test_sparsegpt_removes_what_costs_least_first():
    weight, hessian = problem(1, 12, 5)
    damped = hessian.double() + torch.eye(12) * 0.01 * hessian.double().diagonal().median()
    costs = torch.stack(
        [weight[0, j] ** 2 / torch.linalg.inv(damped[j:, j:])[0, 0] for j in range(12)]
    )
    pruned = sparse.sparsegpt(weight, hessian, 0.25)
    assert set((pruned[0] == 0).nonzero().flatten().tolist()) == set(costs.argsort()[:3].tolist())


@pytest.mark.parametrize("prune", [sparse.sparsegpt, sparse.wanda])
@given(st.integers(1, 5), st.integers(1, 40), st.integers(0, 1000))
def test_two_of_every_four_go(prune, rows, groups, seed):
    weight, hessian = problem(rows, 4 * groups, seed)
    pruned = prune(weight, hessian, 0.5, group=(2, 4))
    assert ((pruned.unflatten(1, (-1, 4)) != 0).sum(2) == 2).all()


def test_sparsegpt_groups_are_refitted_too():
    weight, hessian = problem(4, 24, 1)
    pruned = sparse.sparsegpt(weight, hessian, 0.5, group=(2, 4))
    assert torch.allclose(pruned, eliminate(weight, hessian, pruned != 0), atol=1e-4)


def test_sparsegpt_errs_less_than_wanda():
    weight, hessian = problem(16, 64, 2)
    errors = []
    for prune in (sparse.sparsegpt, sparse.wanda):
        error = prune(weight, hessian, 0.5) - weight
        errors.append(float(((error @ hessian) * error).sum()))
    assert errors[0] < 0.95 * errors[1]


@given(st.integers(1, 6), st.integers(1, 30), st.floats(0, 0.99), st.integers(0, 1000))
def test_wanda_equals_its_definition(rows, columns, sparsity, seed):
    weight, hessian = problem(rows, columns, seed)
    pruned = sparse.wanda(weight, hessian, sparsity)
    for row, left in zip(weight, pruned, strict=True):
        scores = [abs(float(w)) * float(hessian[j, j]) ** 0.5 for j, w in enumerate(row)]
        gone = sorted(range(columns), key=scores.__getitem__)[: int(columns * sparsity)]
        expected = [0.0 if j in gone else float(w) for j, w in enumerate(row)]
        assert left.tolist() == expected


@pytest.mark.parametrize("prune", [sparse.sparsegpt, sparse.wanda])
def test_groups_that_do_not_divide_are_refused(prune):
    weight, hessian = problem(2, 6, 0)
    with pytest.raises(ValueError, match="groups of 4 do not divide 6 columns"):
        prune(weight, hessian, 0.5, group=(2, 4))


def test_nothing_goes_at_no_sparsity():
    weight, hessian = problem(3, 8, 0)
    assert torch.equal(sparse.sparsegpt(weight, hessian, 0.0), weight)


def test_packed_bytes():
    assert sparse.packed_bytes(50, 100, 2, "unstructured") == 100 + 13
    assert sparse.packed_bytes(50, 100, 1, "2:4") == 50 + 13
