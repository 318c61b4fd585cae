import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from tests.numerics.knapsack_cases import plain, totals, ways

from spqlm.numerics.knapsack import (
    RELATIVE_GAP,
    Worth,
    choose,
    nearest,
    smallest,
    used,
    worth,
)
from spqlm.numerics.programme import Alternative, Choice


def least_loss(units, budget) -> float:
    """Over every combination of choices, unit by unit, worse ones of equal size dropped."""
    best = {0: 0.0}
    for unit in units:
        found: dict[int, float] = {}
        for (size, loss), (_, more, nats) in itertools.product(best.items(), ways(unit)):
            if size + more <= budget:
                found[size + more] = min(found.get(size + more, math.inf), loss + nats)
        best = found
    return min(best.values())


def largest_loss(units) -> float:
    return max(
        loss
        for unit in units
        for alternative in unit
        for loss in [alternative.loss, *(nats for part in alternative.parts for _, nats in part)]
    )


@st.composite
def instances(draw, largest_size=1000, exponents=(0, 0)):
    """Nested alternatives and a budget between the smallest choice and the largest."""
    size = st.integers(1, largest_size)
    loss = st.builds(
        lambda digits, exponent: digits * 10.0**exponent,
        st.integers(0, 1000),
        st.integers(*exponents),
    )
    part = st.lists(st.tuples(size, loss), min_size=1, max_size=3)
    parts = st.lists(part, min_size=0, max_size=2)
    alternative = st.builds(Alternative, loss, parts)
    unit = st.lists(alternative, min_size=1, max_size=3)
    units = draw(st.lists(unit, min_size=1, max_size=4))
    most = sum(max(size for _, size, _ in ways(unit)) for unit in units)
    return units, draw(st.integers(smallest(units), most + 10))


def assert_best(units, budget) -> None:
    size, loss = totals(units, choose(units, budget))
    assert size <= budget
    # HiGHS' own absolute gap, of losses in units of the largest.
    absolute = 1e-6 * largest_loss(units)
    assert loss <= least_loss(units, budget) * (1 + RELATIVE_GAP) + absolute


@given(instances())
def test_equals_brute_force_to_the_stated_gap(instance):
    assert_best(*instance)


@given(instances(exponents=(-12, 0)))
def test_the_gap_holds_where_one_option_is_far_worse(instance):
    assert_best(*instance)


@given(instances(largest_size=10**9))
def test_not_one_byte_over_the_budget_of_a_large_model(instance):
    units, budget = instance
    assert totals(units, choose(units, budget))[0] <= budget


@settings(max_examples=25)
@given(instances())
def test_the_smallest_choice_is_that_of_brute_force(instance):
    units, _ = instance
    assert smallest(units) == sum(min(size for _, size, _ in ways(unit)) for unit in units)
    taken = choose(units, smallest(units))
    assert totals(units, taken)[0] == smallest(units)


def test_an_option_one_byte_too_large_is_not_taken():
    one = [plain([(10**9, 1.0), (10**9 + 1, 0.0)])]
    assert choose(one, 10**9) == [Choice(0, [0])]
    first, second = [(10**8, 1.0), (10**8 + 3, 0.0)], [(10**8, 2.0), (10**8 + 4, 0.0)]
    taken = [Choice(0, [0]), Choice(0, [1])]
    assert choose([plain(first), plain(second)], 2 * 10**8 + 6) == taken
    assert choose([plain(first, second)], 2 * 10**8 + 6) == [Choice(0, [0, 1])]


def test_a_shape_is_taken_with_the_options_that_it_affords():
    whole = Alternative(0.0, [[(40, 3.0), (80, 0.1)]])
    cut = Alternative(1.0, [[(20, 2.0), (40, 0.1)]])
    assert choose([[whole, cut]], 80) == [Choice(0, [1])]
    assert choose([[whole, cut]], 79) == [Choice(1, [1])]
    assert choose([[whole, cut]], 39) == [Choice(1, [0])]


def test_a_budget_below_the_smallest_choice_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match="takes 7, more than 6"):
        choose([plain([(3, 1.0), (9, 0.0)]), plain([(4, 0.0)])], 6)


def test_a_budget_of_exactly_the_smallest_choice_takes_it():
    units = [plain([(9, 0.0), (3, 1.0)]), plain([(4, 1.0), (5, 0.0)])]
    assert choose(units, 7) == [Choice(0, [1]), Choice(0, [0])]


def test_equal_alternatives_are_all_right():
    units = [[Alternative(1.0, [[(5, 1.0), (5, 1.0)]])] * 2] * 2
    assert totals(units, choose(units, 10)) == (10, 4.0)


def test_losses_of_zero():
    units = [plain([(5, 0.0), (9, 0.0)]), plain([(4, 0.0), (2, 0.0)])]
    assert choose(units, 7) == [Choice(0, [0]), Choice(0, [1])]


def test_nothing_to_choose():
    assert choose([], 0) == []
    assert choose([plain()], 10) == [Choice(0, [])]


# --- the worth of a byte -------------------------------------------------------------------------


def relaxed(units, budget) -> float:
    """Least loss where units may mix their choices, over all of them written out."""
    every = [(index, *way[1:]) for index, unit in enumerate(units) for way in ways(unit)]
    solved = linprog(
        [loss for _, _, loss in every],
        A_ub=[[size for _, size, _ in every]],
        b_ub=[budget],
        A_eq=[[float(index == unit) for index, _, _ in every] for unit in range(len(units))],
        b_eq=[1.0] * len(units),
        bounds=(0, 1),
    )
    return float(solved.fun) if solved.status == 0 else math.inf


@settings(max_examples=25)
@given(instances())
def test_the_worth_lies_between_what_the_next_byte_saves_and_what_the_last_one_did(instance):
    units, budget = instance
    [price] = worth(units, budget).costs
    here = relaxed(units, budget)
    slack = 1e-6 * (1 + largest_loss(units))
    assert price >= 0
    assert price >= here - relaxed(units, budget + 1) - slack
    assert price <= relaxed(units, budget - 1) - here + slack


@settings(max_examples=25)
@given(instances())
def test_what_costs_more_than_the_worth_is_in_no_best_relaxed_choice(instance):
    # Choices that pay less than the worth bound the relaxed optimum from below, exactly.
    units, budget = instance
    [price] = worth(units, budget).costs
    bound = sum(min(loss + price * size for _, size, loss in ways(unit)) for unit in units)
    expected = relaxed(units, budget)
    assert bound - price * budget == pytest.approx(expected, rel=1e-6, abs=1e-6 * (1 + expected))


def test_a_budget_above_everything_makes_bytes_worthless():
    assert worth([plain([(3, 1.0), (9, 0.0)])], 10) == Worth((0.0,))


def test_a_byte_is_worth_the_slope():
    units = [plain([(100, 1.0), (200, 0.0)])]
    assert worth(units, 150).costs == pytest.approx((0.01,))
    # The losses of real models are small, and their bytes many.
    units = [plain([(10**8, 1e-6), (3 * 10**8, 0.0)])]
    assert worth(units, 2 * 10**8).costs == pytest.approx((5e-15,))


def test_a_budget_out_of_reach_makes_bytes_worth_everything():
    found = worth([plain([(3, 1.0), (9, 0.0)])], 2)
    assert not found.within
    # Losses count nothing then.
    assert found.paid(100.0, (3,)) < found.paid(0.0, (9,))


def test_a_byte_for_nothing_is_worth_nothing():
    assert worth([], 10) == Worth((0.0,))
    assert not worth([], -1).within


# --- several limits ------------------------------------------------------------------------------


@st.composite
def limited_twice(draw):
    """Units whose shapes and options cost of two things, and budgets near the middle of both."""
    cost, loss = st.integers(1, 50), st.integers(0, 1000)
    part = st.lists(st.tuples(cost, cost, loss), min_size=1, max_size=3)
    alternative = st.builds(
        lambda loss, parts, costs: Alternative(float(loss), parts, costs=costs),
        loss,
        st.lists(part, min_size=0, max_size=2),
        st.tuples(st.integers(-9, 9), st.integers(-9, 9)),
    )
    units = draw(st.lists(st.lists(alternative, min_size=1, max_size=2), min_size=1, max_size=3))
    budgets = [smallest(units, k) + draw(st.integers(0, 60)) for k in range(2)]
    return units, budgets


def every_choice(units):
    """Each choice for all units, with what it costs of both things, and its loss."""
    ways_of = []
    for unit in units:
        found = []
        for index, alternative in enumerate(unit):
            for picks in itertools.product(*(range(len(part)) for part in alternative.parts)):
                taken = [part[pick] for part, pick in zip(alternative.parts, picks, strict=True)]
                loss = alternative.loss + sum(option[-1] for option in taken)
                found.append((Choice(index, list(picks)), loss))
        ways_of.append(found)
    for ways_taken in itertools.product(*ways_of):
        taken = [choice for choice, _ in ways_taken]
        costs = [used(units, taken, k) for k in range(2)]
        yield taken, costs, sum(loss for _, loss in ways_taken)


@settings(deadline=None, max_examples=60)
@given(limited_twice())
def test_two_limits_are_kept_at_the_least_loss(instance):
    units, budgets = instance
    allowed = [
        loss
        for _, costs, loss in every_choice(units)
        if all(cost <= budget for cost, budget in zip(costs, budgets, strict=True))
    ]
    if not allowed:
        with pytest.raises(ValueError, match="no choice keeps within all budgets"):
            choose(units, *budgets)
        return
    taken = choose(units, *budgets)
    assert all(used(units, taken, k) <= budgets[k] for k in range(2))
    [loss] = [loss for choice, _, loss in every_choice(units) if choice == taken]
    assert loss <= min(allowed) * (1 + RELATIVE_GAP) + 1e-3


@settings(deadline=None, max_examples=60)
@given(limited_twice())
def test_the_nearest_exceeds_all_budgets_by_the_least_share(instance):
    units, budgets = instance
    budgets = [max(budget, 1) for budget in budgets]

    def excess(costs):
        over = (cost / budget - 1 for cost, budget in zip(costs, budgets, strict=True))
        return max(0.0, *over)

    best = min(excess(costs) for _, costs, _ in every_choice(units))
    assert excess(nearest(units, budgets, budgets)) == pytest.approx(best, rel=1e-3, abs=1e-6)


@settings(deadline=None, max_examples=40)
@given(limited_twice())
def test_the_duals_bound_the_loss_from_below(instance):
    # Lagrange: with all costs paid, the cheapest of each unit is no more than any choice within.
    units, budgets = instance
    found = worth(units, *budgets)
    values = []
    for unit in units:
        values.append(min(found.paid(loss, costs) for _, costs, loss in every_choice([unit])))
    bound = sum(values) - found.paid(0.0, budgets)
    within = [
        loss
        for _, costs, loss in every_choice(units)
        if all(cost <= budget for cost, budget in zip(costs, budgets, strict=True))
    ]
    if found.within:
        assert bound <= min(within, default=math.inf) + 1e-6 * (1 + abs(bound))
    else:
        assert not within
        assert bound > -1e-9
