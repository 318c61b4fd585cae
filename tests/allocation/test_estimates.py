import pytest
import torch
from torch import Tensor

from spqlm.allocation.estimates import MADE_UP, low_rank_losses, sparse_losses
from spqlm.formats.dense import Dense
from spqlm.formats.group_sparse import of_share
from spqlm.formats.int4 import Int4
from spqlm.formats.int8 import Int8
from spqlm.formats.low_rank import LowRank
from spqlm.numerics.group_pruning import group_saliency
from spqlm.numerics.low_rank import weighted_basis
from spqlm.numerics.metric import Metric

ROWS, COLUMNS, GROUP = 48, 64, 16


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def case() -> tuple[Tensor, Metric]:
    """Rows matter as much as 1 on average."""
    inputs, output = drawn(256, COLUMNS, seed=1), drawn(ROWS, seed=2).square()
    metric = Metric([(inputs.T @ inputs / 256, output / output.mean())])
    return drawn(ROWS, COLUMNS, seed=0), metric


@pytest.mark.parametrize(
    "rounding",
    [{}, {Int8(): 0.5}, {Dense(): 0.0, Int8(): 0.5}],
    ids=["nothing", "int8", "dense and int8"],
)
def test_groups_in_bits_that_no_whole_weight_was_rounded_to_are_estimated(rounding):
    weight, metric = case()
    options = [of_share(ROWS, COLUMNS, GROUP, 4, share) for share in (0.25, 0.5)]
    found = sparse_losses(options, weight, metric, rounding)
    assert [option for option, _ in found] == options
    [(hessian, output)] = metric.terms
    saliency = group_saliency(weight, hessian, output, GROUP, "first_order")
    tails = saliency.flatten().double().sort().values.cumsum(0)
    for option, loss in found:
        dropped = len(tails) - option.kept
        assert loss == pytest.approx(MADE_UP * float(tails[dropped - 1]), rel=1e-3)


def test_groups_that_stay_round_as_the_whole_weight_does_in_as_many_bits():
    weight, metric = case()
    options = [of_share(ROWS, COLUMNS, GROUP, 4, 0.25)]
    rounding = {Int4(group_size=32): 3.0, Int4(group_size=64): 5.0, Int8(): 0.5}
    [(_, alone)] = sparse_losses(options, weight, metric, {})
    [(_, loss)] = sparse_losses(options, weight, metric, rounding)
    assert loss == pytest.approx(alone + 0.75 * 3.0)
    # Nothing is dropped, so rounding is all that it costs.
    [(_, whole)] = sparse_losses([of_share(ROWS, COLUMNS, GROUP, 4, 0.0)], weight, metric, rounding)
    assert whole == 3.0


def test_no_options_have_no_estimates():
    weight, metric = case()
    assert sparse_losses([], weight, metric, {Int4(group_size=32): 1.0}) == []
    assert low_rank_losses([], weight, metric, {Int8(): 1.0}) == []


def test_a_rank_loses_the_tail_and_rounds_as_the_weight_itself():
    weight, metric = case()
    losses, _ = weighted_basis(weight, *metric.terms[0])
    options = [LowRank(rank=rank, factor=form) for rank in (32, 16) for form in (Int8(), Dense())]
    found = low_rank_losses(options, weight, metric, {Int8(): 0.5, Dense(): 0.0})
    assert [option for option, _ in found] == options
    for option, loss in found:
        tail = float(losses[option.rank :].double().sum())
        assert loss == pytest.approx(tail + (0.5 if option.factor == Int8() else 0), rel=1e-4)
