"""Charts that stand by themselves."""

import re
from xml.etree import ElementTree

from tests.report.test_comparison import result

from spqlm.comparison.cells import Cell
from spqlm.report.pictures import file_name, links, size_against_loss


def cell(method, size, **tasks):
    return Cell(
        method=method,
        target=None,
        status="done",
        bytes=size,
        recipe={},
        seed=0,
        tasks=tasks,
        key="",
    )


def test_a_chart_for_each_text_in_the_colours_of_its_reader():
    found = result(20.0, 1.0)
    cells = [
        cell("gptq", 2_000_000, one=found),
        cell("int4", 3_000_000, one=found, two=found.model_copy(update={"task": "my own.txt"})),
    ]
    drawn = size_against_loss(cells)
    assert list(drawn) == ["text", "my own.txt"]
    assert [">gptq<" in chart for chart in drawn.values()] == [True, False]
    for chart in drawn.values():
        assert ElementTree.fromstring(chart).tag.endswith("svg")
        light, dark = chart.split("@media (prefers-color-scheme: dark)")
        used = set(re.findall(r"var\((--[a-z0-9-]+)\)", chart))
        assert {"--ink", "--series-1"} <= used
        assert all(f"{name}: #" in light and f"{name}: #" in dark for name in used)
    shown = links(drawn)
    assert f"]({file_name('text')})" in shown and "](size-against-loss-my%20own.txt.svg)" in shown


def test_cells_without_a_text_have_no_chart():
    assert size_against_loss([cell("gptq", 2_000_000)]) == {} and links({}) == ""
