import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spqlm.numerics import importance


def test_layer_ratios_follow_the_formula():
    scores = [0.5, 2.0, 8.0, 1.0]
    ratios = importance.layer_ratios(torch.tensor(scores), 0.1, 0.4)
    low, high = math.log(0.5), math.log(8.0)
    expected = [0.1 + 0.3 * (high - math.log(score)) / (high - low) for score in scores]
    assert ratios.dtype == torch.float64
    assert ratios.tolist() == pytest.approx(expected, abs=1e-12)


def test_weakest_layer_loses_the_maximum_and_the_strongest_the_minimum():
    ratios = importance.layer_ratios(torch.tensor([3.0, 1.0, 9.0]), 0.0, 0.25)
    assert ratios.tolist() == pytest.approx([0.125, 0.25, 0.0], abs=1e-12)


@pytest.mark.parametrize("scores", [[2.0, 2.0, 2.0], [0.0, 0.0], [5.0]])
def test_layers_that_score_alike_lose_the_minimum(scores):
    assert importance.layer_ratios(torch.tensor(scores), 0.05, 0.5).tolist() == [0.05] * len(scores)


def test_a_dead_layer_loses_the_maximum_and_leaves_the_others_finite():
    ratios = importance.layer_ratios(torch.tensor([0.0, 1.0, 2.0]), 0.0, 0.5)
    assert ratios[0] == pytest.approx(0.5)
    assert ratios[2] == 0
    assert 0 < ratios[1] < 0.01


def test_half_precision_scores_are_accepted():
    ratios = importance.layer_ratios(torch.tensor([1.0, 4.0], dtype=torch.bfloat16), 0.0, 0.5)
    assert ratios.tolist() == [0.5, 0.0]


@given(
    st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=12),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_layer_ratios_stay_within_their_bounds_and_order_layers_by_weakness(scores, one, other):
    low, high = sorted((one, other))
    ratios = importance.layer_ratios(torch.tensor(scores), low, high)
    assert bool((ratios >= low - 1e-12).all())
    assert bool((ratios <= high + 1e-12).all())
    order = torch.tensor(scores).argsort(stable=True)
    assert bool((ratios[order].diff() <= 1e-12).all())


@pytest.mark.parametrize(("minimum", "maximum"), [(-0.1, 0.5), (0.5, 1.1), (0.6, 0.5)])
def test_bounds_out_of_range_or_order_are_refused(minimum, maximum):
    with pytest.raises(ValueError, match="need 0 <= minimum <= maximum <= 1"):
        importance.layer_ratios(torch.ones(2), minimum, maximum)


@given(st.integers(1, 20000), st.floats(0, 1), st.sampled_from([1, 2, 8, 32, 64]))
def test_kept_count_is_a_multiple_within_bounds_and_the_nearest_one(width, ratio, multiple):
    kept = importance.kept_count(width, ratio, multiple)
    assert min(multiple, width) <= kept <= width
    assert kept % multiple == 0 or kept == width
    wanted = width - round(width * ratio)
    candidates = [m for m in range(multiple, width + 1, multiple)] or [width]
    assert abs(kept - wanted) == min(abs(c - wanted) for c in [*candidates, kept])


def test_kept_count_examples():
    assert importance.kept_count(1536, 0.05, 32) == 1472  # 1459 -> 46 * 32
    assert importance.kept_count(100, 0.25, 1) == 75
    assert importance.kept_count(64, 1.0, 32) == 32
    assert importance.kept_count(8, 0.9, 32) == 8
    assert importance.kept_count(3, 1.0, 1) == 1


@pytest.mark.parametrize("width", [64, 100, 11008, 10])
def test_a_ratio_of_zero_prunes_nothing(width):
    assert importance.kept_count(width, 0.0, 32) == width


def test_strongest_are_the_highest_scores_in_ascending_order():
    scores = torch.tensor([0.1, 0.9, 0.4, 0.8])
    kept = importance.strongest(scores, 2)
    assert kept.dtype == torch.int64
    assert kept.tolist() == [1, 3]
    assert importance.strongest(scores, 0).tolist() == []
    assert importance.strongest(scores, 4).tolist() == [0, 1, 2, 3]


def test_ties_go_to_the_lower_index():
    assert importance.strongest(torch.tensor([1.0, 2.0, 1.0, 1.0, 2.0]), 3).tolist() == [0, 1, 4]
    assert importance.strongest(torch.zeros(1000), 10).tolist() == list(range(10))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.data())
def test_strongest_match_a_sort_in_python(values, data):
    count = data.draw(st.integers(0, len(values)))
    kept = importance.strongest(torch.tensor(values, dtype=torch.float32), count).tolist()
    expected = sorted(range(len(values)), key=lambda i: (-values[i], i))[:count]
    assert kept == sorted(expected)
