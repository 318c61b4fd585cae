"""Size against loss of a comparison, on a page or as files that stand by themselves."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal
from urllib.parse import quote

from spqlm.comparison.cells import Cell
from spqlm.names import markdown
from spqlm.report import charts
from spqlm.report.comparison import Point, curves
from spqlm.report.page import Chart
from spqlm.report.palette import DARK, LIGHT, variables

Loss = Literal["nll", "divergence"]
# That size is drawn against, with their units.
LOSSES: dict[Loss, str] = {
    "nll": "nats per token",
    "divergence": "KL to the dense model, nats per token",
}


def loss_chart(
    text: str, methods: Mapping[str, Sequence[Point]], key: Loss, mark: Point | None = None
) -> Chart | None:
    """Size against one of `LOSSES`, of the methods that have it; None where none has.

    Args:
        text: that was measured on.
        methods: points by method, as `report.comparison.curves` gives them for a text.
        key: of the loss.
        mark: the checkpoint that the page is about.

    Raises:
        SpqError: matplotlib is not installed.
    """
    placed = {name: [_place(point, key) for point in points] for name, points in methods.items()}
    series = {name: [p for p in places if p] for name, places in placed.items() if all(places)}
    if not series:
        return None
    star = None if mark is None else _place(mark, key)
    unit = LOSSES[key]
    count = sum(map(len, series.values()))
    shown = f"{count} points of {len(series)} methods: {', '.join(series)}."
    if star:
        shown += f" This checkpoint: {star.size:.1f} MB, {star.value:.4f} {unit}."
    title = f"{text}: size against {unit}"
    drawn = charts.curves(series, unit, title, f"{shown} The table below has all figures.", star)
    return Chart(drawn, f"Size against {unit} on {text}, with standard errors.")


def _place(point: Point, key: Loss) -> charts.Place | None:
    value, error = {
        "nll": (point.nll, point.nll_error),
        "divergence": (point.divergence, point.divergence_error),
    }[key]
    return None if value is None else charts.Place(point.bytes / 1e6, value, error)


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
        f"Size against loss on {markdown(text)}, with standard errors:\n\n"
        f"![{markdown(text)}]({quote(file_name(text))})\n\n"
        for text in texts
    )


def _standing_alone(chart: str) -> str:
    """The chart with the colours that a report's page would give it."""
    style = (
        f"svg {{ {variables(LIGHT)} }}\n"
        f"@media (prefers-color-scheme: dark) {{ svg {{ {variables(DARK)} }} }}"
    )
    words, end, drawn = chart.partition("</desc>")
    return f"{words}{end}\n<style>\n{style}\n</style>{drawn}"
