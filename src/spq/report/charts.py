"""Charts as SVG text that follows the page's colours, light or dark."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from spq.errors import SpqError

# Drawn in these, and then replaced by variables of the page's style sheet.
INK, FAINT = "#010203", "#040506"
SERIES = tuple(f"#0a0b{index:02x}" for index in range(1, 15))
MARKERS = "osD^vP*Xh<>pd8"


def _figure(width: float, height: float) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise SpqError(
            "charts need the package matplotlib: pip install 'spq-llm[report]'"
        ) from None
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


def bars(values: Mapping[str, float], unit: str, description: str) -> str:
    """One horizontal bar for each name, the first on top."""
    figure, axes = _figure(7, 0.45 * len(values) + 0.7)
    names = list(values)[::-1]
    drawn = axes.barh(names, [values[name] for name in names], color=SERIES[0])
    axes.bar_label(drawn, fmt="%.1f", padding=3, color=INK, fontsize=8)
    axes.set_xlabel(unit, color=INK, fontsize=8)
    return _svg(figure, description)


def columns(values: Sequence[float], unit: str, description: str) -> str:
    """One column for each layer of a decoder."""
    figure, axes = _figure(7, 2.2)
    axes.bar(range(len(values)), values, color=SERIES[0])
    axes.set_xlabel("layer", color=INK, fontsize=8)
    axes.set_ylabel(unit, color=INK, fontsize=8)
    return _svg(figure, description)


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
    """Size in MB against a figure with its standard error, a line for each name."""
    figure, axes = _figure(7, 4)
    for index, (name, points) in enumerate(series.items()):
        sizes, values, errors = zip(*points, strict=True)
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
