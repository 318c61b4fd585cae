"""Profiles as data: what lies between two times, and steps of whole models."""

import pytest

from spqlm.errors import SpqError
from spqlm.formats.dense import Dense
from spqlm.formats.int4 import Int4
from spqlm.formats.int8 import Int8
from spqlm.formats.low_rank import LowRank
from spqlm.model.extent import Extent
from spqlm.profile import Product, Profile, Rest


def product(rows, columns, tokens, seconds, form=None):
    return Product(
        format=form or Int8(), rows=rows, columns=columns, tokens=tokens, seconds=seconds
    )


def profile(*products, rests=()):
    return Profile(
        processor="one of these",
        kernels=None,
        threads=1,
        dtype="float32",
        products=products,
        rests=rests,
    )


TWO = profile(product(10, 10, 1, 1.0), product(30, 10, 1, 2.0))


def test_what_was_timed_is_what_it_takes():
    assert TWO.seconds(Int8(), 30, 10, 1) == 2.0


def test_another_shape_of_as_many_elements_takes_as_long():
    assert TWO.seconds(Int8(), 10, 30, 1) == 2.0


def test_between_two_shapes_it_is_in_proportion_to_elements():
    assert TWO.seconds(Int8(), 20, 10, 1) == pytest.approx(1.5)


def test_beyond_the_largest_it_takes_as_long_an_element():
    assert TWO.seconds(Int8(), 60, 10, 1) == pytest.approx(4.0)


def test_between_two_counts_of_tokens_it_is_in_proportion_to_them():
    found = profile(product(10, 10, 1, 1.0), product(10, 10, 5, 3.0))
    assert found.seconds(Int8(), 10, 10, 3) == pytest.approx(2.0)


def test_two_factors_are_two_products():
    found = profile(product(10, 2, 1, 0.25), product(2, 10, 1, 0.5))
    assert found.seconds(LowRank(rank=2, factor=Int8()), 10, 10, 1) == 0.75


def test_a_format_that_was_not_timed_is_refused_by_name():
    with pytest.raises(SpqError, match=r"no times of int4; it has those of int8"):
        TWO.seconds(Int4(group_size=32), 10, 10, 1)


def test_a_step_is_its_products_and_the_rest():
    found = profile(
        product(10, 10, 1, 1.0),
        product(10, 10, 4, 2.0),
        product(50, 10, 1, 7.0, Dense()),
        rests=(
            Rest(kind="decode", tokens=1, context=4, seconds=0.5),
            Rest(kind="prefill", tokens=4, context=0, seconds=0.25),
        ),
    )
    weights = [(Int8(), 10, 10)] * 3 + [(Dense(), 50, 10)]
    assert found.step(weights, "decode") == 3 * 1.0 + 7.0 + 0.5
    # The output projection computes the last token of a prompt.
    assert found.step(weights, "prefill") == 3 * 2.0 + 7.0 + 0.25


def test_a_step_that_was_not_timed_is_refused():
    with pytest.raises(SpqError, match="no decode step"):
        TWO.step([(Int8(), 10, 10)], "decode")


def test_what_was_cut_takes_less_of_the_rest():
    rest = Rest(kind="decode", tokens=1, context=4, seconds=9.0, layer=1.0, neuron=0.1, group=0.5)
    whole = Extent(layers=4, neurons=20, groups=8)
    found = profile(
        product(10, 10, 1, 1.0),
        rests=(rest,),
    ).model_copy(update={"extent": whole})
    weights = [(Int8(), 10, 10)] * 2
    assert found.step(weights, "decode") == found.step(weights, "decode", whole) == 2 + 9
    cut = Extent(layers=3, neurons=10, groups=6)
    assert found.step(weights, "decode", cut) == pytest.approx(2 + 9 - 1 - 10 * 0.1 - 2 * 0.5)
    # Slopes are measured, and may say more than there is.
    assert found.step(weights, "decode", Extent()) == 2 + 9 - 9
