"""Charts of a comparison, on a page or as files that stand by themselves."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from spqlm.comparison.cells import Cell
from spqlm.report import charts
from spqlm.report.comparison import curves
from spqlm.report.page import Chart
from spqlm.report.palette import DARK, LIGHT, variables

# That size is drawn against, by their keys in `curves.json`, and units.
LOSSES = {"nll": "nats per token", "divergence": "KL to the dense model, nats per token"}


def loss_chart(
    text: str, methods: Mapping[str, Sequence[Mapping[str, Any]]], key: str
) -> Chart | None:
    """Size against one of `LOSSES`, of the methods that have it; None where none has.

    Args:
        text: that was measured on.
        methods: points by method, as `report.comparison.curves` gives them for a text.
        key: of the loss.

    Raises:
        SpqError: matplotlib is not installed.
    """
    series = {
        name: [(p["bytes"] / 1e6, p[key], p[f"{key}_error"]) for p in points]
        for name, points in methods.items()
        if all(p[key] is not None for p in points)
    }
    if not series:
        return None
    unit = LOSSES[key]
    drawn = charts.curves(series, unit, f"{text}: size against {unit}")
    return Chart(drawn, f"{text}: {unit}, with standard errors.")


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
