import pytest
import torch

from spqlm.numerics.drift import asymmetric_target

ROWS, COLUMNS, TOKENS = 6, 10, 200
NEXT_TO_NONE = 1e-6


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    """What enters the weight in the dense model, and now: one column a token."""
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(COLUMNS, TOKENS, generator=generator)
    return dense, dense + 0.3 * torch.randn(COLUMNS, TOKENS, generator=generator)


def answer(share: float) -> tuple[torch.Tensor, torch.Tensor]:
    weight = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(1))
    dense, now = inputs()
    drift, hessian = (dense - now) @ now.T / TOKENS, now @ now.T / TOKENS
    return weight, asymmetric_target(weight, drift, hessian, NEXT_TO_NONE, share)


def test_all_of_it_is_the_least_squares_fit_to_what_the_dense_model_gives():
    weight, found = answer(1.0)
    dense, now = inputs()
    expected = torch.linalg.lstsq(now.double().T, (weight @ dense).double().T).solution.T
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5])
def test_a_share_goes_as_far_of_the_way(share):
    weight, part = answer(share)
    _, whole = answer(1.0)
    torch.testing.assert_close(part, weight + share * (whole - weight))


def test_inputs_that_have_not_moved_leave_the_weight_as_it_is():
    weight = torch.randn(ROWS, COLUMNS)
    found = asymmetric_target(weight, torch.zeros(COLUMNS, COLUMNS), torch.eye(COLUMNS), 0.1, 1.0)
    assert torch.equal(found, weight)
