"""Charts as files that stand by themselves."""

from collections.abc import Iterable, Sequence
from urllib.parse import quote

from spq.comparison.cells import Cell
from spq.report.comparison import curves
from spq.report.palette import DARK, LIGHT, variables
from spq.report.sections import loss_chart


def size_against_loss(cells: Sequence[Cell]) -> dict[str, str]:
    """An SVG of all methods for each text, in the colours of its reader, light or dark.

    Raises:
        SpqError: matplotlib is not installed.
    """
    drawn = {text: loss_chart(text, methods, "nll") for text, methods in curves(cells).items()}
    return {text: _standing_alone(chart.svg) for text, chart in drawn.items() if chart}


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
    style = (
        f"svg {{ {variables(LIGHT)} }}\n"
        f"@media (prefers-color-scheme: dark) {{ svg {{ {variables(DARK)} }} }}"
    )
    opening = chart.index(">") + 1
    return f"{chart[:opening]}\n<style>\n{style}\n</style>{chart[opening:]}"
