"""Charts as files that stand by themselves."""

from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import quote

from spq.comparison.cells import Cell
from spq.report import sections
from spq.report.comparison import curves
from spq.report.page import DARK, LIGHT


def size_against_loss(cells: Sequence[Cell]) -> dict[str, str]:
    """An SVG of all methods for each text, in the colours of its reader, light or dark.

    Raises:
        SpqError: matplotlib is not installed.
    """
    return {
        text: _standing_alone(sections.comparison({text: methods}).charts[0].svg)
        for text, methods in curves(cells).items()
    }


def file_name(text: str) -> str:
    """Of the chart of a text."""
    return f"size-against-loss-{text}.svg"


def links(texts: Iterable[str]) -> str:
    """The charts in Markdown that lies beside them."""
    return "".join(
        f"Size against loss on {text}, with standard errors:\n\n"
        f"![{text}]({quote(file_name(text))})\n\n"
        for text in texts
    )


def _standing_alone(chart: str) -> str:
    """The chart with the colours that a report's page would give it."""
    light = _style({"ink": "#1c2024", "faint": "#b8bfc6"}, LIGHT)
    dark = _style({"ink": "#e4e7ea", "faint": "#59616a"}, DARK)
    style = f"{light}\n@media (prefers-color-scheme: dark) {{ {dark} }}"
    opening = chart.index(">") + 1
    return f"{chart[:opening]}\n<style>\n{style}\n</style>{chart[opening:]}"


def _style(lines: Mapping[str, str], series: Sequence[str]) -> str:
    colours = {**lines, **{f"series-{i}": colour for i, colour in enumerate(series, start=1)}}
    return "svg { " + " ".join(f"--{name}: {value};" for name, value in colours.items()) + " }"
