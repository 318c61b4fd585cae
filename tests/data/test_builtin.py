import sys

import pytest

from spqlm.data import fingerprint, load_text, overlap
from spqlm.data.builtin import SHARED_WORDS, builtin_documents, related_groups
from spqlm.data.fingerprints import sliding
from spqlm.errors import SpqError


def words(start: int, count: int) -> str:
    return " ".join(f"w{number}" for number in range(start, start + count))


def test_the_halves_are_of_one_size_and_enough_for_windows_of_1024():
    calibration = load_text("builtin", "calibration")
    evaluation = load_text("builtin", "evaluation")
    sizes = [len(calibration.text), len(evaluation.text)]
    assert min(sizes) > 0.9 * max(sizes)
    assert min(sizes) > 100_000
    assert "calibration half" in calibration.origin
    assert "evaluation half" in evaluation.origin


def test_the_halves_share_no_text():
    calibration = load_text("builtin", "calibration").text
    evaluation = load_text("builtin", "evaluation").text
    assert overlap(fingerprint(calibration), evaluation) == 0
    assert overlap(fingerprint(evaluation), calibration) == 0
    assert set(sliding(calibration)).isdisjoint(sliding(evaluation))


def test_topics_that_share_a_passage_are_one_group():
    shared = words(0, SHARED_WORDS)
    topics = {
        "a": f"{words(1000, 40)} {shared}",
        "b": f"{shared} {words(2000, 60)} {words(10, SHARED_WORDS)}",
        "c": f"{words(10, SHARED_WORDS)} {words(3000, 40)}",
        "apart": f"{words(0, SHARED_WORDS - 1)} {words(4000, 40)}",
    }
    groups = {frozenset(group) for group in related_groups(topics)}
    assert groups == {frozenset("abc"), frozenset({"apart"})}


def test_a_topic_that_repeats_a_larger_one_is_left_out():
    topics = {"large": words(0, 200), "part": f"{words(50, 60)} {words(1000, 20)}"}
    assert related_groups(topics) == [["large"]]


def test_a_python_without_topics_is_named(monkeypatch):
    from spqlm.data import builtin

    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    builtin._halves.cache_clear()
    with pytest.raises(SpqError, match="pydoc_data, which this Python lacks"):
        builtin_documents("calibration")
