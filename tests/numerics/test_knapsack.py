import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spq.numerics.knapsack import RELATIVE_GAP, choose


def totals(sizes, losses, taken):
    size = sum(options[pick] for options, pick in zip(sizes, taken, strict=True))
    return size, sum(options[pick] for options, pick in zip(losses, taken, strict=True))


def least_loss(sizes, losses, budget):
    every = itertools.product(*(range(len(options)) for options in sizes))
    found = (totals(sizes, losses, taken) for taken in every)
    return min(loss for size, loss in found if size <= budget)


@st.composite
def instances(draw, largest_size=1000, exponents=(0, 0)):
    """Sizes, losses and a budget somewhere between the smallest choice and the largest."""
    counts = draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    size = st.integers(1, largest_size)
    sizes = [[draw(size) for _ in range(count)] for count in counts]
    loss = st.builds(
        lambda digits, exponent: digits * 10.0**exponent,
        st.integers(0, 1000),
        st.integers(*exponents),
    )
    losses = [[draw(loss) for _ in range(count)] for count in counts]
    budget = draw(st.integers(sum(map(min, sizes)), sum(map(max, sizes)) + 10))
    return sizes, losses, budget


def assert_best(sizes, losses, budget):
    size, loss = totals(sizes, losses, choose(sizes, losses, budget))
    assert size <= budget
    # HiGHS' own absolute gap, of losses in units of the largest.
    absolute = 1e-6 * max(map(max, losses))
    assert loss <= least_loss(sizes, losses, budget) * (1 + RELATIVE_GAP) + absolute


@given(instances())
def test_equals_brute_force_to_the_stated_gap(instance):
    assert_best(*instance)


@given(instances(exponents=(-12, 0)))
def test_the_gap_holds_where_one_option_is_far_worse(instance):
    assert_best(*instance)


@given(instances(largest_size=10**9))
def test_not_one_byte_over_the_budget_of_a_large_model(instance):
    sizes, losses, budget = instance
    assert totals(sizes, losses, choose(sizes, losses, budget))[0] <= budget


def test_an_option_one_byte_too_large_is_not_taken():
    assert choose([[10**9, 10**9 + 1]], [[1.0, 0.0]], 10**9) == [0]
    two = [[10**8, 10**8 + 3], [10**8, 10**8 + 4]]
    assert choose(two, [[1.0, 0.0], [2.0, 0.0]], 2 * 10**8 + 6) == [0, 1]


def test_a_budget_below_the_smallest_choice_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match="takes 7 bytes, more than 6"):
        choose([[3, 9], [4]], [[1.0, 0.0], [0.0]], 6)


def test_a_budget_of_exactly_the_smallest_choice_takes_it():
    assert choose([[9, 3], [4, 5]], [[0.0, 1.0], [1.0, 0.0]], 7) == [1, 0]


def test_a_single_item_takes_its_best_option_that_fits():
    assert choose([[10, 20, 30]], [[3.0, 2.0, 1.0]], 25) == [1]
    assert choose([[10]], [[3.0]], 10) == [0]


def test_equal_options_are_all_right():
    taken = choose([[5, 5], [5, 5]], [[1.0, 1.0], [1.0, 1.0]], 10)
    assert len(taken) == 2 and set(taken) <= {0, 1}


def test_losses_of_zero():
    assert choose([[5, 9], [4, 2]], [[0.0, 0.0], [0.0, 0.0]], 7) == [0, 1]


def test_nothing_to_choose():
    assert choose([], [], 0) == []
    assert choose([], [], 10) == []
