import pytest
import torch
from tests.numerics.gptq_cases import correlated, cost, exact, random, round_groups
from torch import Tensor

from spqlm.numerics import descent, in_order, integer

ROWS, COLUMNS, GROUP = 12, 48, 16


def rounded(bits: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    weight, hessian = random(ROWS, COLUMNS), correlated(COLUMNS).float()
    codes, scale = round_groups(weight, hessian, GROUP, bits)
    return weight, codes, scale, hessian


def error(weight: Tensor, codes: Tensor, scale: Tensor, hessian: Tensor) -> float:
    return cost(exact(codes, scale) - weight.double(), hessian)


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
def test_it_takes_a_part_of_the_error_that_gptq_leaves(bits):
    weight, codes, scale, hessian = rounded(bits)
    better = descent.improve_groups(weight, codes, scale, hessian, bits)
    before, after = (error(weight, *found, hessian) for found in ((codes, scale), better))
    assert after < 0.95 * before
    low, high = integer.code_range(bits)
    assert better[0].dtype == torch.int8
    assert low <= int(better[0].min()) and int(better[0].max()) <= high
    assert torch.equal(integer.round_scale(better[1]), better[1])


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_pass_is_the_one_column_after_the_other_of_its_definition(bits, monkeypatch):
    monkeypatch.setattr(in_order, "BLOCK", 20)
    weight, codes, scale, hessian = rounded(bits)
    found = descent.best_codes(weight, codes, scale, hessian, bits)
    low, high = integer.code_range(bits)
    choices = torch.arange(low, high + 1)
    expected = codes.clone()
    for row in range(ROWS):
        for column in range(COLUMNS):
            tried = expected[row].repeat(len(choices), 1)
            tried[:, column] = choices
            errors = exact(tried, scale[row].expand(len(choices), -1)) - weight[row].double()
            costs = ((errors @ hessian.double()) * errors).sum(1)
            expected[row, column] = choices[costs.argmin()]
    # Where two codes cost the same to the last digit, either will do.
    assert float((found != expected).float().mean()) < 0.01
    assert error(weight, found, scale, hessian) == pytest.approx(
        error(weight, expected, scale, hessian), rel=1e-3
    )


def test_scales_are_those_of_least_squares():
    weight, codes, scale, hessian = rounded(3)
    found = descent.best_scales(weight, codes, scale, hessian)
    root = torch.linalg.cholesky(hessian.double())
    for row in range(ROWS):
        spread = torch.zeros(COLUMNS, COLUMNS // GROUP, dtype=torch.float64)
        for group in range(COLUMNS // GROUP):
            place = slice(group * GROUP, (group + 1) * GROUP)
            spread[place, group] = codes[row, place].double()
        expected = torch.linalg.lstsq(root.T @ spread, root.T @ weight[row].double()).solution
        # They are stored in eight significant bits.
        torch.testing.assert_close(found[row].double(), expected, rtol=2**-8, atol=1e-6)


def test_a_group_of_zeros_keeps_its_scale():
    weight, codes, scale, hessian = rounded(4)
    codes[0, :GROUP] = 0
    found = descent.best_scales(weight, codes, scale, hessian)
    assert found[0, 0] == scale[0, 0]
    assert bool(torch.isfinite(found).all())


def test_the_inputs_are_left_alone():
    weight, codes, scale, hessian = rounded(3)
    before = [t.clone() for t in (weight, codes, scale, hessian)]
    descent.improve_groups(weight, codes, scale, hessian, 3)
    for tensor, kept in zip((weight, codes, scale, hessian), before, strict=True):
        assert torch.equal(tensor, kept)


def test_best_values_are_those_of_no_gradient_by_each_entry():
    weight, codes, scale, hessian = (t.double() for t in rounded(3))
    values = exact(codes, scale)
    found = descent.best_values(weight, values, hessian)
    for column in (0, 17, 47):
        tried = values.clone()
        tried[:, column] = found[:, column]
        gradient = (tried - weight) @ hessian[:, column]
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-9, rtol=0)
