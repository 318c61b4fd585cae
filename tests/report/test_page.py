import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from spqlm.report import charts
from spqlm.report.charts import Place
from spqlm.report.page import (
    Answer,
    Chart,
    Code,
    Document,
    Fact,
    Sample,
    Section,
    Table,
    html,
    markdown,
)
from spqlm.report.palette import DARK, DARK_PAGE, LIGHT, LIGHT_PAGE, STEPS, contrast

HOSTILE = "<script>alert('&')</script> | ``` [/b] $\\frac$ \\1 _x_ \x1b[31m"
SHOWN = HOSTILE.replace("\x1b", "\\x1b")
EMPTY = ("meta", "link", "br", "path", "use", "image", "rect")


class Reader(HTMLParser):
    """Tags that are open and those that were seen."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.words = [], [], []

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        if tag not in EMPTY:
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
    drawn = charts.curves({"a": [Place(1.0, 2.0, 0.1)]}, "nats", "Sizes", "One point")
    return Section(
        HOSTILE,
        texts=[HOSTILE],
        charts=[Chart(drawn, HOSTILE)],
        tables=[
            Table(HOSTILE, ["", HOSTILE], [["1", HOSTILE], ["2", "x"]], bars=[0.25, 1]),
            Table(
                "More", ["b", "c"], [["3", "4.5"], ["5", "-"]], folded=True, heat=[[1.0], [None]]
            ),
        ],
        samples=[Sample(HOSTILE, [Answer(HOSTILE, HOSTILE)])],
        codes=[Code(HOSTILE, "bash", HOSTILE)],
    )


def page():
    return html(
        Document("name", "about", [Fact("Size", "1 MB", "of 2 MB")], [section(), Section("Two")])
    )


def test_a_page_is_well_formed_and_needs_nothing_else():
    reader = read(page())
    assert reader.open == []
    tags = [tag for tag, _ in reader.seen]
    assert "script" not in tags and tags.count("svg") == 1 and tags.count("table") == 2
    links = [v for _, a in reader.seen for k, v in a.items() if k in ("href", "src")]
    assert all(link.startswith(("#", "data:")) for link in links)
    assert not re.search(r"url\((?!#)|@import", page())


def test_text_is_shown_as_it_is():
    text = html(Document(HOSTILE, HOSTILE, [Fact(HOSTILE, HOSTILE, HOSTILE)], [section()]))
    assert "".join(read(text).words).count(SHOWN) == 6 + 12
    assert "\x1b" not in text


def test_a_page_has_landmarks_and_headings_in_order():
    reader = read(page())
    tags = [tag for tag, _ in reader.seen]
    assert [tags.count(tag) for tag in ("header", "nav", "main", "footer", "h1")] == [1] * 5
    levels = [int(tag[1]) for tag in tags if re.fullmatch("h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in pairwise(levels))
    first = next(attributes for tag, attributes in reader.seen if tag == "a")
    assert first == {"class": "skip", "href": "#report"}


def test_everything_that_is_pointed_to_is_there_once():
    reader = read(page())
    ids = [attributes["id"] for _, attributes in reader.seen if "id" in attributes]
    assert len(set(ids)) == len(ids)
    pointed = [a["href"][1:] for _, a in reader.seen if a.get("href", "").startswith("#")]
    pointed += " ".join(
        a["aria-labelledby"] for _, a in reader.seen if "aria-labelledby" in a
    ).split()
    assert pointed and set(pointed) <= set(ids)


def test_tables_have_captions_and_scopes():
    reader = read(page())
    tags = [tag for tag, _ in reader.seen]
    assert tags.count("caption") == 2
    assert {a.get("scope") for tag, a in reader.seen if tag == "th"} == {"col", "row"}
    scopes = [a["scope"] for tag, a in reader.seen if tag == "th"]
    assert scopes.count("row") == 4 and scopes.count("col") == 3
    wide = [a for _, a in reader.seen if a.get("class") == "wide"]
    assert all(
        a["tabindex"] == "0" and (a.keys() & {"aria-label", "aria-labelledby"}) for a in wide
    )


def test_colours_repeat_what_cells_say():
    text = page()
    assert f'<td class="heat-{STEPS}">4.5</td>' in text and "<td>-</td>" in text
    assert 'style="--share: 25.0%"' in text


def test_long_tables_are_folded():
    assert re.search(r"<details><summary>More</summary>\s*<div", page())


def test_markdown_holds_the_same_figures_and_no_markup():
    card = markdown(Document(HOSTILE, HOSTILE, [Fact("Size", "1 MB", "of 2 MB")], [section()]))
    outside = re.sub(r"^(`{3,})\w*\n.*?^\1$", "", card, flags=re.MULTILINE | re.DOTALL)
    assert set(re.findall(r"</?\w+>", outside)) == {
        *("<details>", "</details>"),
        *("<summary>", "</summary>"),
    }
    assert not re.search(r"(?<!\\)[$`\[]|(?<!\\)_x", outside) and "\x1b" not in card
    assert "| 1 | &lt;script&gt;" in card and "| 3 | 4.5 |" in card and "| Size | 1 MB |" in card
    assert "<svg" not in card and "\n````\n" + SHOWN in card and "\n````bash\n" + SHOWN in card
    table = next(line for line in card.splitlines() if line.startswith("|  | &lt;"))
    assert len(re.findall(r"(?<!\\)\|", table)) == 3


PALETTES = {"light": (LIGHT, LIGHT_PAGE), "dark": (DARK, DARK_PAGE)}


@pytest.mark.parametrize("scheme", PALETTES)
def test_colours_have_the_contrast_that_wcag_asks_for(scheme):
    chart, colours = PALETTES[scheme]
    for behind in ("paper", "box"):
        for text in ("ink", "muted", "accent"):
            assert contrast(colours[text], colours[behind]) >= 4.5, (text, behind)
    for step in range(1, STEPS + 1):
        assert contrast(colours["ink"], colours[f"heat-{step}"]) >= 4.5, step
    for name, colour in chart.items():
        if name.startswith("series"):
            assert contrast(colour, chart["paper"]) >= 3, name
    assert contrast(colours["accent"], colours["line"]) >= 3  # the bar on its ground


@pytest.mark.parametrize("scheme", PALETTES)
def test_steps_of_heat_differ_from_each_other(scheme):
    colours = PALETTES[scheme][1]
    steps = [contrast(colours[f"heat-{step}"], colours["paper"]) for step in range(1, STEPS + 1)]
    assert steps == sorted(steps) and len(set(steps)) == STEPS


@pytest.mark.parametrize(
    "one, other, ratio",
    [("#000000", "#ffffff", 21), ("#777777", "#ffffff", 4.48), ("#ffffff", "#ffffff", 1)],
)
def test_contrast_is_that_of_wcag(one, other, ratio):
    assert contrast(one, other) == contrast(other, one) == pytest.approx(ratio, abs=0.005)
