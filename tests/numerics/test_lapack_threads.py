"""Results do not depend on PyTorch's threads.

Once the number of threads was changed, LU of a batch of matrices of some 150 rows or more is wrong
in several threads of MKL, with no error most of the time (pytorch/pytorch#141358).
"""

import pytest
import torch
from tests.numerics.gptq_cases import correlated, random
from torch import Tensor

from spqlm.numerics import descent
from spqlm.numerics.elimination import elimination_order
from spqlm.numerics.group_pruning import group_saliency


@pytest.fixture
def in_threads():
    """Runs work in one thread and in two, which MKL is then used with."""
    before = torch.get_num_threads()

    def run(work) -> tuple[Tensor, Tensor]:
        torch.set_num_threads(1)
        torch.linalg.cholesky(torch.eye(576, dtype=torch.float64))
        alone = work()
        torch.set_num_threads(2)
        return alone, work()

    yield run
    torch.set_num_threads(before)


def test_heads_leave_in_the_same_order(in_threads):
    channels, units = 192, 3
    weight, hessian = random(40, channels * units), correlated(channels * units)
    alone, shared = in_threads(
        lambda: elimination_order(weight, hessian, torch.ones(40), 2, channels)
    )
    assert torch.equal(alone, shared)


def test_scales_of_many_groups_are_the_same(in_threads):
    groups = 192
    weight, hessian = random(8, groups * 16), correlated(groups * 16).float()
    codes = (weight * 4).round().clamp(-8, 7).to(torch.int8)
    scale = torch.full((8, groups), 0.25)
    alone, shared = in_threads(lambda: descent.best_scales(weight, codes, scale, hessian))
    torch.testing.assert_close(shared, alone)


def test_groups_are_as_salient(in_threads):
    weight, hessian = random(8, 3 * 192), correlated(3 * 192).float()
    alone, shared = in_threads(
        lambda: group_saliency(weight, hessian, torch.ones(8), 192, "joint", 0.01)
    )
    torch.testing.assert_close(shared, alone)
