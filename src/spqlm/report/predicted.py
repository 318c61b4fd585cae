"""A chart of what budgets would cost: predicted loss against size, and against speed."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from spqlm.errors import SpqError
from spqlm.frontier import Frontier, Point

SUFFIXES = (".png", ".svg", ".pdf")
AXES = {
    "size": "size, MB",
    "decode": "decoding, times as fast as dense",
    "prefill": "prompt, times as fast as dense",
}
# Inches of a panel.
WIDTH, HEIGHT = 4.6, 3.4


def check_chart(file: Path) -> None:
    """Refuse, before minutes of pricing, a chart that could not be drawn.

    Raises:
        SpqError: the file has another suffix, or matplotlib is not installed.
    """
    if file.suffix not in SUFFIXES:
        raise SpqError(f"a chart is a file ending in {', '.join(SUFFIXES)}, not {file.name!r}")
    if find_spec("matplotlib") is None:
        raise SpqError("charts need the package matplotlib: pip install 'spqlm[report]'")


def draw(found: Frontier, file: Path) -> None:
    """A panel for sizes and one for each kind of speed, of the budgets that are within reach.

    Args:
        found: with a point within reach.
        file: to write; its suffix says as what.

    Raises:
        SpqError: see `check_chart`; or the file cannot be written.
    """
    check_chart(file)
    from matplotlib.figure import Figure

    reached = [point for point in found.points if point.predicted_loss is not None]
    kinds = [kind for kind in AXES if any(point.kind == kind for point in reached)]
    figure = Figure(figsize=(WIDTH * len(kinds), HEIGHT), layout="constrained")
    panels: Any = figure.subplots(1, len(kinds), squeeze=False)[0]
    for axes, kind in zip(panels, kinds, strict=True):
        _panel(axes, kind, [point for point in reached if point.kind == kind])
    try:
        figure.savefig(file, dpi=150)
    except OSError as error:
        raise SpqError(f"cannot write {str(file)!r}: {error.strerror}") from None


def _panel(axes: Any, kind: str, points: list[Point]) -> None:
    pairs = sorted((_place(point), point.predicted_loss) for point in points)
    places, losses = zip(*pairs, strict=True)
    axes.plot(places, losses, marker="o", markersize=4, linewidth=1.2)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(AXES[kind])
    axes.set_ylabel("predicted loss, nats per token")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", linewidth=0.4, alpha=0.6)


def _place(point: Point) -> float:
    return point.target / 1e6 if point.target is not None else point.times or 0.0
