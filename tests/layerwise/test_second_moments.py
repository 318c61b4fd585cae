import pytest
import torch
from torch import Tensor

from spqlm.layerwise.second_moments import SecondMoments

COUNT, WIDTH = 20, 6


def rows(seed: int = 0) -> Tensor:
    return torch.randn(COUNT, WIDTH, generator=torch.Generator().manual_seed(seed))


def assert_near(found: Tensor, expected: Tensor) -> None:
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_without_weights_it_is_the_mean_outer_product():
    x, moments = rows(), SecondMoments(["a"])
    for part in (slice(0, 8), slice(8, COUNT)):
        moments("a", part, x[part])
    assert_near(moments.mean("a"), x.double().T @ x.double() / COUNT)
    assert moments.tokens("a") == COUNT


def test_tokens_may_be_any_that_a_layer_sees():
    x, weights = rows(), torch.arange(COUNT).float()
    moments = SecondMoments(["a"], lambda _, tokens: weights[tokens])
    seen = [torch.tensor([3, 17, 0]), torch.tensor([5])]
    for tokens in seen:
        moments("a", tokens, x[tokens])
    index = torch.cat(seen)
    w, few = weights[index].double(), x[index].double()
    assert_near(moments.mean("a"), (few.T * w) @ few / w.sum())
    # The first token weighs nothing.
    assert moments.tokens("a") == 3


def test_tokens_that_all_weigh_nothing_give_zeros():
    moments = SecondMoments(["a"], lambda _, tokens: torch.zeros(COUNT))
    moments("a", slice(0, COUNT), rows())
    assert not moments.mean("a").any() and moments.tokens("a") == 0


@pytest.mark.parametrize("shared", [True, False])
def test_projections_that_read_the_same_rows_share_one_sum(shared):
    moments = SecondMoments(["a", "b", "c"])
    for seed in (0, 1):
        x = rows(seed)
        moments("a", slice(0, COUNT), x)
        moments("b", slice(0, COUNT), x if shared else x.clone())
        moments("c", slice(0, COUNT), rows(seed + 2))
    assert len(moments._sums) == (2 if shared else 3)
    assert torch.equal(moments.mean("a"), moments.mean("b"))
    assert not torch.equal(moments.mean("a"), moments.mean("c"))


def test_what_is_not_wanted_is_ignored():
    moments = SecondMoments(["a"])
    moments("b", slice(0, COUNT), rows())
    with pytest.raises(KeyError):
        moments.mean("b")


def test_a_mean_that_is_taken_is_the_same_and_leaves_the_count():
    x = torch.randn(COUNT, 300)  # more than a block of the sum
    kept, taken = (SecondMoments(["a"], lambda _, tokens: torch.ones(COUNT)) for _ in range(2))
    for moments in (kept, taken):
        moments("a", slice(0, COUNT), x)
    mean = kept.mean("a")
    assert torch.equal(taken.take_mean("a"), mean) and torch.equal(mean, mean.T)
    assert taken.tokens("a") == COUNT
