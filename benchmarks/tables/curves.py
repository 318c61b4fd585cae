"""Charts of size against loss of all methods, from the comparison.json, as files."""

from spq.comparison import Comparison
from spq.report import sections
from spq.report.comparison import curves
from spq.report.page import DARK, LIGHT

NAME = "size-against-loss-{text}.svg"


def pictures(stored: dict) -> dict[str, str]:
    """An SVG for each text, in its reader's colours, light or dark.

    Args:
        stored: what `spq compare` wrote.
    """
    found = curves(Comparison.model_validate(stored).cells)
    return {
        text: _standing_alone(sections.comparison({text: methods}).charts[0].svg)
        for text, methods in found.items()
    }


def _standing_alone(chart: str) -> str:
    """The chart with the colours that a report's page would give it."""
    style = "".join(
        f"{start} --ink: {ink}; --faint: {faint}; "
        + " ".join(f"--series-{index}: {colour};" for index, colour in enumerate(series, start=1))
        + end
        for start, ink, faint, series, end in (
            ("svg {", "#1c2024", "#b8bfc6", LIGHT, " }\n"),
            ("@media (prefers-color-scheme: dark) { svg {", "#e4e7ea", "#59616a", DARK, " } }\n"),
        )
    )
    opening = chart.index(">") + 1
    return f"{chart[:opening]}\n<style>\n{style}</style>{chart[opening:]}"
