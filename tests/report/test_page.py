import re
from html.parser import HTMLParser

import pytest

from spqlm.report import charts
from spqlm.report.page import Answer, Chart, Sample, Section, Table, html, markdown

HOSTILE = "<script>alert('&')</script> | ```"


class Reader(HTMLParser):
    """Tags that are open and those that were seen."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.words = [], [], []

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "br", "path", "use", "image", "rect"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag in self.open:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def read(text):
    reader = Reader()
    reader.feed(text)
    return reader


def section():
    drawn = charts.bars({"": {"before": 2.0, "after": 1.0}}, "MB", "Sizes")
    return Section(
        HOSTILE,
        texts=[HOSTILE],
        charts=[Chart(drawn, HOSTILE)],
        tables=[Table(["a", HOSTILE], [["1", HOSTILE]]), Table(["b"], [["2"]], folded="More")],
        samples=[Sample(HOSTILE, [Answer(HOSTILE, HOSTILE)])],
        codes=[HOSTILE],
    )


def test_a_page_is_well_formed_and_needs_nothing_else():
    reader = read(html("name", "about", [section()]))
    assert reader.open == []
    tags = [tag for tag, _ in reader.seen]
    assert "script" not in tags and tags.count("svg") == 1 and tags.count("table") == 2
    links = [v for _, a in reader.seen for k, v in a.items() if k in ("href", "src")]
    assert all(link.startswith(("#", "data:")) for link in links)


def test_text_is_shown_as_it_is():
    reader = read(html(HOSTILE, HOSTILE, [section()]))
    assert "".join(reader.words).count(HOSTILE) == 3 + 9


def test_long_tables_are_folded():
    page = html("name", "about", [section()])
    assert re.search(r"<details><summary>More</summary>\s*<div", page)


def test_the_card_holds_the_same_figures_and_no_markup():
    card = markdown("name", "about", [section()])
    assert "| 1 | &lt;script>" in card and "<svg" not in card and "| b |" not in card
    assert "\n````\n" + HOSTILE in card
    table = next(line for line in card.splitlines() if line.startswith("| a"))
    assert len(re.findall(r"(?<!\\)\|", table)) == 3


DRAWN = {
    "bars": lambda: charts.bars({"a": {"one": 1.0}, "b": {"one": 3.0, "two": 2.0}}, "MB", "Bars"),
    "columns": lambda: charts.columns({"a": [1.0, 2.0], "b": [3.0, 4.0]}, "nats", "Columns"),
    "grid": lambda: charts.grid(["q", "k"], [[0.1, 0.2], [0.3, 0.4]], "share", "Grid"),
    "curves": lambda: charts.curves(
        {"a": [(1.0, 2.0, 0.1), (2.0, 1.0, None)], "b & c": [(1.0, 3.0, 0.1)]}, "nats", "Curves"
    ),
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_chart_takes_its_colours_from_the_page(name):
    drawn = DRAWN[name]()
    assert drawn == DRAWN[name]()
    assert drawn.startswith("<svg viewBox=") and f'aria-label="{name.capitalize()}"' in drawn
    assert "var(--ink)" in drawn
    assert not re.search(r"#0[14]0[25]0[36]|#0a0b", drawn)
    assert "<text" in drawn  # not drawn as outlines
    assert read(drawn).open == []


def test_several_series_have_a_legend_and_one_has_none():
    for draw in (charts.columns, charts.bars):
        values = [1.0] if draw is charts.columns else {"x": 1.0}
        assert ">first<" not in draw({"first": values}, "MB", "One")
        both = draw({"first": values, "second": values}, "MB", "Two")
        assert ">first<" in both and ">second<" in both


def test_a_curve_is_labelled_by_its_method():
    assert "b &amp; c" in DRAWN["curves"]()


def test_what_lost_far_more_than_the_best_is_named_and_not_drawn():
    near, far = (50.0, 3.5, 0.1), (60.0, 21.0, 1.0)
    drawn = charts.curves({"a": [near], "broken": [far]}, "nats", "Curves")
    assert "above: broken 21.0 at 60 MB" in drawn and ">20<" not in drawn
    assert drawn.count("broken") == 1  # not in the legend
    assert "above:" not in charts.curves({"a": [near], "b": [near]}, "nats", "Curves")


def test_what_is_above_at_several_sizes_is_named_once():
    near, far, farther = (50.0, 3.5, 0.1), (60.0, 21.0, 1.0), (75.0, 7.25, 1.0)
    drawn = charts.curves({"a": [near, far], "b": [far, farther]}, "nats", "Curves")
    assert "above: a 21.0 at 60 MB, b 7.2 to 21.0 at 60 to 75 MB" in drawn
