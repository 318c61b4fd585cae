"""Parts and shapes of units that are to be of one kind."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.numerics.knapsack_cases import totals, ways

from spqlm.numerics.knapsack import RELATIVE_GAP, choose, smallest
from spqlm.numerics.programme import Alternative, Tie


def tied_instance(draw):
    """Units of one shape, two kinds of option or three for each part, and every part in a tie."""
    kinds = st.lists(st.sampled_from("abc"), min_size=1, max_size=3, unique=True)
    units = []
    for _ in range(draw(st.integers(1, 3))):
        parts, ties = [], []
        for _ in range(draw(st.integers(1, 2))):
            offered = draw(kinds)
            sizes = st.tuples(st.integers(1, 50), st.floats(0, 10))
            parts.append([draw(sizes) for _ in offered])
            ties.append(Tie(draw(st.sampled_from(["one", "two"])), offered))
        units.append([Alternative(0.0, parts, ties)])
    return units


def obeys(units, taken) -> bool:
    found: dict[str, set[str]] = {}
    for [alternative], choice in zip(units, taken, strict=True):
        for tie, pick in zip(alternative.ties, choice.options, strict=True):
            found.setdefault(tie.name, set()).add(tie.kinds[pick])
    return all(len(kinds) == 1 for kinds in found.values())


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_parts_of_a_tie_take_one_kind_at_the_least_loss(data):
    units = tied_instance(data.draw)
    every = [
        list(taken)
        for taken in itertools.product(*([way[0] for way in ways(unit)] for unit in units))
    ]
    allowed = [taken for taken in every if obeys(units, taken)]
    if not allowed:
        with pytest.raises(ValueError, match="no kind of option in common"):
            smallest(units)
        return
    sizes = [totals(units, taken)[0] for taken in allowed]
    assert smallest(units) == min(sizes)
    budget = data.draw(st.integers(min(sizes), max(sizes)))
    taken = choose(units, budget)
    size, loss = totals(units, taken)
    assert obeys(units, taken) and size <= budget
    best = min(totals(units, t)[1] for t in allowed if totals(units, t)[0] <= budget)
    assert loss <= best * (1 + 2 * RELATIVE_GAP) + 1e-5


def test_a_tie_holds_across_the_shapes_of_a_unit():
    tie = Tie("t", ["wide", "narrow"])
    whole = Alternative(0.0, [[(10, 0.0), (5, 1.0)]], [tie])
    cut = Alternative(0.1, [[(6, 0.0), (3, 1.0)]], [tie])
    other = Alternative(0.0, [[(10, 0.0), (5, 1.0)]], [tie])
    taken = choose([[whole, cut], [other]], 16)
    assert [choice.options for choice in taken] == [[0], [0]]
    assert taken[0].alternative == 1


@st.composite
def tied_shapes(draw):
    """Units of the sizes None and some of 1 and 2, in one tie or another."""
    units = []
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(["one", "two"]))
        sizes = [None, *draw(st.lists(st.sampled_from([1, 2]), max_size=2, unique=True))]
        option = st.tuples(st.integers(1, 50), st.floats(0, 10))
        part = st.lists(option, min_size=1, max_size=2)
        units.append(
            [
                Alternative(draw(st.floats(0, 10)), [draw(part)], shape_ties=[Tie(name, [size])])
                for size in sizes
            ]
        )
    return units


def even(units, taken) -> bool:
    found: dict[str, set[int | None]] = {}
    for unit, choice in zip(units, taken, strict=True):
        [tie] = unit[choice.alternative].shape_ties
        found.setdefault(tie.name, set()).add(tie.kinds[0])
    return all(len(sizes) == 1 for sizes in found.values())


@settings(deadline=None, max_examples=40)
@given(tied_shapes(), st.data())
def test_units_of_a_tie_take_one_shape_at_the_least_loss(units, data):
    every = itertools.product(*([way[0] for way in ways(unit)] for unit in units))
    allowed = [list(taken) for taken in every if even(units, taken)]
    sizes = [totals(units, taken)[0] for taken in allowed]
    assert smallest(units) == min(sizes)
    budget = data.draw(st.integers(min(sizes), max(sizes)))
    taken = choose(units, budget)
    size, loss = totals(units, taken)
    assert even(units, taken) and size <= budget
    best = min(totals(units, t)[1] for t in allowed if totals(units, t)[0] <= budget)
    assert loss <= best * (1 + 2 * RELATIVE_GAP) + 1e-5
