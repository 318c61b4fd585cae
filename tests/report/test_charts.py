import re
from math import inf, nan
from xml.etree import ElementTree

import pytest
from tests.report.test_page import HOSTILE, SHOWN, read

from spqlm.report.charts import Place, curves

NEAR, FAR = Place(50.0, 3.5, 0.1), Place(60.0, 21.0, 1.0)
FARTHER = Place(75.0, 7.25, 1.0)


def draw(series, **more):
    return curves(series, "nats", "A chart", "What it shows", **more)


def test_a_chart_takes_its_colours_from_the_page():
    series = {"a": [Place(1.0, 2.0, 0.1), Place(2.0, 1.0, None)], "b & c": [Place(1.0, 2.2, 0.1)]}
    drawn = draw(series)
    assert drawn == draw(series)
    assert (
        drawn.startswith("<svg viewBox=") and "var(--ink)" in drawn and "var(--series-2)" in drawn
    )
    assert not re.search(r"#0[147]0[258]0[369]|#0a0b", drawn)
    assert "<text" in drawn  # not drawn as outlines
    assert "b &amp; c" in drawn
    assert read(drawn).open == []


def test_a_chart_says_what_it_shows_to_those_who_do_not_see_it():
    reader = read(draw({"a": [NEAR]}))
    (svg,) = (attributes for tag, attributes in reader.seen if tag == "svg")
    assert svg["role"] == "img"
    named = {
        a["id"]: tag for tag, a in reader.seen if a.get("id") in svg["aria-labelledby"].split()
    }
    assert sorted(named.values()) == ["desc", "title"]
    assert "A chart" in reader.words and "What it shows" in reader.words


@pytest.mark.parametrize("name", [HOSTILE, "$\\frac$", "\\1", "_private", "a\nb", "雪", "\x1b[31m"])
def test_a_name_is_neither_a_formula_nor_markup(name):
    drawn = curves({name: [NEAR], "far" + name: [FAR]}, name, name, name, mark=NEAR)
    root = ElementTree.fromstring(drawn)  # no character that XML forbids
    texts = ["".join(element.itertext()) for element in root.iter() if element.tag.endswith("text")]
    wanted = " ".join(name.replace("\x1b", "\\x1b").split())
    assert any(wanted in text.replace("\u200b", "") for text in texts)
    assert not [element for element in root.iter() if element.tag.endswith("script")]


def test_this_checkpoint_has_a_star_and_a_name():
    assert "this checkpoint" in draw({"a": [NEAR]}, mark=Place(40.0, 3.6, None))
    assert "this checkpoint" not in draw({"a": [NEAR]})


def test_what_lost_far_more_than_the_best_is_named_and_not_drawn():
    drawn = draw({"a": [NEAR], "broken": [FAR]})
    assert "Not drawn, with more loss: broken 21.0 at 60 MB" in drawn and ">20<" not in drawn
    assert drawn.count("broken") == 1  # not in the legend
    assert "Not drawn" not in draw({"a": [NEAR], "b": [NEAR]})


def test_what_is_above_at_several_sizes_is_named_once():
    drawn = draw({"a": [NEAR, FAR], "b": [FAR, FARTHER]})
    assert "Not drawn, with more loss: a 21.0 at 60 MB, b 7.2 to 21.0 at 60 to 75 MB" in drawn


@pytest.mark.parametrize("value", [nan, inf])
def test_what_is_no_number_is_named_and_not_drawn(value):
    drawn = draw({"a": [NEAR], "broken": [Place(60.0, value, None)]})
    assert f"Not drawn, with more loss: broken {value:.1f} at 60 MB" in drawn
    assert f"Not drawn, with more loss: broken {value:.1f} at 60 MB" in draw(
        {"broken": [Place(60.0, value, None)]}
    )


def test_methods_beyond_the_colours_still_differ():
    drawn = draw({f"m{i}": [Place(float(i), 1.0, None)] for i in range(20)})
    assert all(f">m{i}<" in drawn for i in range(20))


def test_shown_is_what_the_page_shows():
    assert SHOWN in "".join(read(curves({"a": [NEAR]}, "nats", HOSTILE, "")).words)
