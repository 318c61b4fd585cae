"""Size against loss as SVG text that follows the page's colours, light or dark."""

import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from html import escape
from math import isfinite
from typing import Any, NamedTuple
from warnings import catch_warnings, filterwarnings
from zlib import crc32

from spqlm.errors import SpqError
from spqlm.names import visible

# Drawn in these, and then replaced by variables of the page's style sheet.
INK, FAINT, PAPER = "#010203", "#040506", "#070809"
SERIES = tuple(f"#0a0b{index:02x}" for index in range(1, 15))
# A colour and a marker meet again only after 14 × 13 names; the star is the checkpoint's.
MARKERS = "osD^vPXh<>pd8"
MOST_NATS = 1.5
SIZE = 9


class Place(NamedTuple):
    """A point of a curve: size in MB, a figure, and its standard error where that is known."""

    size: float
    value: float
    error: float | None


def curves(
    series: Mapping[str, Sequence[Place]],
    unit: str,
    title: str,
    description: str,
    mark: Place | None = None,
) -> str:
    """Size in MB against a figure in nats with its standard error, a line for each name.

    What lost more than `MOST_NATS` beyond the best is named over the chart and not drawn: it would
    leave no room to tell the others apart. So is what has no finite figure.

    Args:
        series: points by name, at least one in all.
        unit: of the figure.
        title: of the chart, for those who do not see it.
        description: what it shows, for the same.
        mark: of one model, which gets a star and the words "this checkpoint".

    Raises:
        SpqError: matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        raise SpqError("charts need the package matplotlib: pip install 'spqlm[report]'") from None
    # Text stays text, in the page's font, and is never a formula; the salt makes ids the same in
    # every run.
    options: Any = {"svg.fonttype": "none", "svg.hashsalt": title, "text.parse_math": False}
    with rc_context(options), catch_warnings():
        # Of a name in another script; the reader's fonts may well have it.
        filterwarnings("ignore", message="Glyph .* missing")
        figure = Figure(figsize=(5.4, 4.3), layout="constrained")
        axes = figure.subplots()
        _frame(axes, _label(unit))
        far = _limit(axes, [*series.values(), [mark] if mark else []])
        _lines(axes, series, far)
        if mark is not None and not far(mark):
            _star(axes, mark)
        _name_far(axes, series, far)
        if axes.get_legend_handles_labels()[0]:
            outside: Any = {"loc": "outside lower center", "ncols": 3, "frameon": False}
            figure.legend(fontsize=SIZE - 1, labelcolor=INK, **outside)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _inline(buffer.getvalue(), visible(title), visible(description))


def _frame(axes: Any, unit: str) -> None:
    axes.tick_params(colors=INK, labelsize=SIZE)
    axes.spines[["top", "right"]].set_visible(False)
    for spine in axes.spines.values():
        spine.set_color(FAINT)
    axes.grid(axis="y", color=FAINT, linewidth=0.4, alpha=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel("MB", color=INK, fontsize=SIZE)
    axes.set_ylabel(unit, color=INK, fontsize=SIZE)


def _limit(axes: Any, drawn: Sequence[Sequence[Place]]) -> Any:
    """Set the height of the chart; which points lie above it."""
    finite = [p for points in drawn for p in points if isfinite(p.value)]
    most = MOST_NATS + min((p.value for p in finite), default=0.0)

    def far(point: Place) -> bool:
        return not point.value <= most

    if len(finite) < sum(map(len, drawn)) or any(map(far, finite)):
        least = min((p.value - (p.error or 0) for p in finite), default=0.0)
        axes.set_ylim(least - MOST_NATS / 40, most)
    return far


def _lines(axes: Any, series: Mapping[str, Sequence[Place]], far: Any) -> None:
    for index, (name, points) in enumerate(series.items()):
        if all(map(far, points)):
            continue
        sizes, values, errors = zip(*points, strict=True)
        axes.errorbar(
            sizes,
            values,
            yerr=[error or 0 for error in errors],
            # matplotlib leaves out labels that begin with an underscore.
            label=re.sub("^_", "\u200b_", _label(name)),
            color=SERIES[index % len(SERIES)],
            marker=MARKERS[index % len(MARKERS)],
            markersize=5,
            linewidth=1,
            elinewidth=0.8,
        )


def _star(axes: Any, mark: Place) -> None:
    shape = {"marker": "*", "markersize": 17, "linestyle": "none", "zorder": 5}
    axes.plot(mark.size, mark.value, color=INK, markeredgecolor=PAPER, **shape)
    # Above the curves, which fall to the right, and towards the middle of the chart.
    left, right = axes.get_xlim()
    late = mark.size > (left + right) / 2
    axes.annotate(
        "this checkpoint",
        (mark.size, mark.value),
        xytext=(-45 if late else 45, 70),
        textcoords="offset points",
        ha="right" if late else "left",
        color=INK,
        fontsize=SIZE,
        fontweight="bold",
        arrowprops={"arrowstyle": "-", "color": INK, "linewidth": 0.8, "shrinkB": 7},
    )


def _label(name: str) -> str:
    return " ".join(visible(name).split())


def _name_far(axes: Any, series: Mapping[str, Sequence[Place]], far: Any) -> None:
    above = {name: [p for p in points if far(p)] for name, points in series.items()}
    named = ", ".join(_span(_label(name), points) for name, points in above.items() if points)
    if named:
        title = "\n".join(textwrap.wrap(f"Not drawn, with more loss: {named}", 74))
        axes.set_title(title, color=INK, fontsize=SIZE - 1, loc="left")


def _span(name: str, points: Sequence[Place]) -> str:
    """Between which figures and sizes the points lie."""
    values = _between([point.value for point in points], 1)
    sizes = _between([point.size for point in points], 0)
    return f"{name} {values} at {sizes} MB"


def _between(numbers: Sequence[float], digits: int) -> str:
    least, most = (f"{number:.{digits}f}" for number in (min(numbers), max(numbers)))
    return least if least == most else f"{least} to {most}"


def _inline(text: str, title: str, description: str) -> str:
    """Matplotlib's SVG as part of a page: its colours, its font, and words for those who listen."""
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r"font: ((?:bold )?[^;\"]*px) [^;\"]*", r"font: \1 system-ui, sans-serif", text)
    for index, colour in enumerate(SERIES, start=1):
        text = text.replace(colour, f"var(--series-{index})")
    for colour, name in ((INK, "ink"), (FAINT, "faint"), (PAPER, "paper")):
        text = text.replace(colour, f"var(--{name})")
    start = text.index(">") + 1
    box = re.search(r'viewBox="([\d. -]*)"', text[:start])
    assert box is not None
    # The size is the page's to decide; ids of several charts must not meet on one page.
    key = f"chart-{crc32(title.encode()):08x}"
    opening = (
        f'<svg viewBox="{box[1]}" role="img" aria-labelledby="{key}-title {key}-text"'
        ' xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">\n'
        f'<title id="{key}-title">{escape(title)}</title>'
        f'<desc id="{key}-text">{escape(description)}</desc>'
    )
    return opening + text[start:]
