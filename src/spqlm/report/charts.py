"""Charts as SVG text that follows the page's colours, light or dark."""

import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from spqlm.errors import SpqError

# Drawn in these, and then replaced by variables of the page's style sheet.
INK, FAINT = "#010203", "#040506"
SERIES = tuple(f"#0a0b{index:02x}" for index in range(1, 15))
MARKERS = "osD^vP*Xh<>pd8"
MOST_NATS = 1.5


def _figure(width: float, height: float) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise SpqError("charts need the package matplotlib: pip install 'spqlm[report]'") from None
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.tick_params(colors=INK, labelsize=8)
    for spine in axes.spines.values():
        spine.set_color(FAINT)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Any, description: str) -> str:
    from matplotlib import rc_context

    buffer = io.StringIO()
    # Text stays text, in the page's font; the salt makes ids the same in every run.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": description}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"font: ([^;\"]*px) [^;\"]*", r"font: \1 sans-serif", text)
    for index, colour in enumerate(SERIES, start=1):
        text = text.replace(colour, f"var(--series-{index})")
    text = text.replace(INK, "var(--ink)").replace(FAINT, "var(--faint)")
    escaped = description.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    # The size is the page's to decide; ids of several charts must not meet on one page.
    text = re.sub(
        r'<svg [^>]*?viewBox="([^"]*)"[^>]*>',
        rf'<svg viewBox="\1" role="img" aria-label="{escaped}" xmlns="http://www.w3.org/2000/svg"'
        ' xmlns:xlink="http://www.w3.org/1999/xlink">',
        text,
        count=1,
    )
    return text


def bars(series: Mapping[str, Mapping[str, float]], unit: str, description: str) -> str:
    """A horizontal bar for each name and series, the first on top."""
    names = list(dict.fromkeys(name for values in series.values() for name in values))
    thickness = 0.8 / len(series)
    figure, axes = _figure(7, 0.45 * len(names) * max(1, len(series) / 2) + 0.7)
    for index, (label, values) in enumerate(series.items()):
        offset = (index - (len(series) - 1) / 2) * thickness
        places = [names.index(name) + offset for name in values]
        drawn = axes.barh(
            places, list(values.values()), thickness, label=label, color=SERIES[index % len(SERIES)]
        )
        axes.bar_label(drawn, fmt=_rounded, padding=3, color=INK, fontsize=8)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel(unit, color=INK, fontsize=8)
    _legend(figure, series)
    return _svg(figure, description)


def columns(series: Mapping[str, Sequence[float]], unit: str, description: str) -> str:
    """A column for each layer of a decoder and each series."""
    figure, axes = _figure(7, 2.2)
    width = 0.8 / len(series)
    for index, (label, values) in enumerate(series.items()):
        offset = (index - (len(series) - 1) / 2) * width
        places = [layer + offset for layer in range(len(values))]
        axes.bar(places, values, width, label=label, color=SERIES[index % len(SERIES)])
    axes.set_xlabel("layer", color=INK, fontsize=8)
    axes.set_ylabel(unit, color=INK, fontsize=8)
    _legend(figure, series)
    return _svg(figure, description)


def _rounded(value: float) -> str:
    return f"{value:.{1 if value >= 10 else 2}f}"


def _legend(figure: Any, series: Mapping[str, Any]) -> None:
    if len(series) > 1:
        figure.legend(
            loc="outside upper center", ncols=2, fontsize=7, labelcolor=INK, frameon=False
        )


def grid(
    names: Sequence[str], values: Sequence[Sequence[float]], unit: str, description: str
) -> str:
    """A coloured cell for every kind of weight (down) in every layer (across)."""
    figure, axes = _figure(7, 0.3 * len(names) + 1.0)
    drawn = axes.pcolormesh(
        values, cmap="viridis", vmin=0, edgecolors="face", linewidth=0.1, rasterized=False
    )
    axes.set_yticks([row + 0.5 for row in range(len(names))], names)
    axes.invert_yaxis()
    axes.set_xlabel("layer", color=INK, fontsize=8)
    scale = figure.colorbar(drawn, ax=axes)
    scale.set_label(unit, color=INK, fontsize=8)
    scale.ax.tick_params(colors=INK, labelsize=8)
    return _svg(figure, description)


def curves(
    series: Mapping[str, Sequence[tuple[float, float, float | None]]],
    unit: str,
    description: str,
) -> str:
    """Size in MB against a figure in nats with its standard error, a line for each name.

    What lost more than `MOST_NATS` beyond the best is named above the chart and not drawn: it would
    leave no room to tell the others apart.
    """
    figure, axes = _figure(7, 4)
    most = MOST_NATS + min(value for points in series.values() for _, value, _ in points)
    above = {name: [p for p in points if p[1] > most] for name, points in series.items()}
    if any(above.values()):
        least = min(p[1] - (p[2] or 0) for points in series.values() for p in points)
        axes.set_ylim(least - MOST_NATS / 40, most)
        named = ", ".join(_span(name, points) for name, points in above.items() if points)
        title = "\n".join(textwrap.wrap(f"above: {named}", 110))
        axes.set_title(title, color=INK, fontsize=7, loc="left")
    drawn = [name for name, points in series.items() if len(above[name]) < len(points)]
    for index, name in enumerate(drawn):
        sizes, values, errors = zip(*series[name], strict=True)
        axes.errorbar(
            sizes,
            values,
            yerr=[error or 0 for error in errors],
            label=name,
            color=SERIES[index % len(SERIES)],
            marker=MARKERS[index % len(MARKERS)],
            markersize=5,
            linewidth=1,
            elinewidth=0.8,
        )
    axes.set_xlabel("MB", color=INK, fontsize=8)
    axes.set_ylabel(unit, color=INK, fontsize=8)
    axes.legend(fontsize=7, labelcolor=INK, frameon=False, ncols=2)
    return _svg(figure, description)


def _span(name: str, points: Sequence[tuple[float, float, float | None]]) -> str:
    """Between which figures and sizes the points lie."""
    values = _between([value for _, value, _ in points], 1)
    sizes = _between([size for size, _, _ in points], 0)
    return f"{name} {values} at {sizes} MB"


def _between(numbers: Sequence[float], digits: int) -> str:
    least, most = (f"{number:.{digits}f}" for number in (min(numbers), max(numbers)))
    return least if least == most else f"{least} to {most}"
