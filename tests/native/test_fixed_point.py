"""Codes times inputs in fixed point: what that keeps, and what of odd numbers."""

import pytest
import torch
from tests.instruction_sets import in_fixed_point
from tests.stored_weights import grouped, int8, random_codes

from spqlm import native
from spqlm.kernels.weights import matrix_of
from spqlm.numerics.packing import PLANES

GROUP = 32


@pytest.fixture(params=[8, *PLANES])
def bits(request):
    return request.param


@pytest.fixture
def product(library, instruction_set, bits):
    """Inputs in bfloat16 [count, in] times codes of so many bits with scales of one."""
    if not in_fixed_point(library, f"int{bits}"):
        pytest.skip(f"{instruction_set} has no such kernel")

    def run(x: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        if bits == 8:
            weight = int8(codes, torch.ones(1))
        elif codes.shape[1] % GROUP:
            pytest.skip("no width for whole groups")
        else:
            weight = grouped(codes, torch.ones(len(codes), codes.shape[1] // GROUP), f"int{bits}")
        return native.linear(library, x.to(torch.bfloat16), matrix_of(weight, None))

    return run


@pytest.fixture
def codes(bits):
    """Random ones, int8 [rows, columns]."""
    return lambda rows, columns: random_codes(rows, columns, bits)


@pytest.mark.parametrize("power", [-80, -20, 0, 20, 80])
@pytest.mark.parametrize(("count", "columns"), [(3, 300), (2, 288), (7, 288), (12, 288), (12, 300)])
def test_inputs_of_like_size_are_exact(product, codes, power, count, columns):
    """Up to seven powers of two apart, whatever their size: the sum is the true one, rounded."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(128, 256, (count, columns), generator=generator).float() * 2.0**power
    x *= 2.0 ** -torch.randint(0, 8, x.shape, generator=generator)
    weight = codes(9, columns)
    expected = (x.double() @ weight.double().T).float()
    assert torch.equal(product(x, weight), expected.to(torch.bfloat16))


def test_a_large_input_takes_little_from_its_neighbours_and_nothing_from_other_blocks(product):
    x = torch.full((1, 256), 2.0**-9)
    x[0, 0] = 1.0
    alone = torch.zeros(1, 256, dtype=torch.int8)
    alone[0, 200] = 1
    assert float(product(x, alone)) == 2.0**-9
    beside = torch.zeros(1, 256, dtype=torch.int8)
    beside[0, 1] = 1
    assert abs(float(product(x, beside)) - 2.0**-9) <= 2.0**-15


@pytest.mark.parametrize("count", [1, 2, 6, 12])
def test_zeros_give_zero_and_the_smallest_numbers_nothing(product, codes, count):
    for x in (torch.zeros(count, 160), torch.full((count, 160), 1e-39)):
        assert not product(x, codes(4, 160)).float().abs().gt(1e-30).any()


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize(("count", "columns"), [(2, 200), (2, 224), (6, 224), (12, 224)])
def test_what_is_not_finite_stays_so(product, codes, bad, count, columns):
    x = torch.ones(count, columns)
    x[1, 150] = bad
    finite = torch.isfinite(product(x, codes(4, columns)))
    assert not bool(finite[1].any())
    finite[1] = True
    assert bool(finite.all())
