"""Colours of pages and charts, by the names that charts are drawn with."""

from collections.abc import Mapping


def _colours(ink: str, faint: str, *series: str) -> dict[str, str]:
    numbered = {f"series-{index}": colour for index, colour in enumerate(series, start=1)}
    return {"ink": ink, "faint": faint, **numbered}


# Distinct from each other and from the paper (after Tol's bright and muted schemes).
LIGHT = _colours(
    *("#1c2024", "#b8bfc6"),
    *("#4477aa", "#cc3311", "#228833", "#aa3377", "#997700", "#0077bb", "#882255"),
    *("#117733", "#ee7733", "#332288", "#999933", "#009988", "#661100", "#555555"),
)
DARK = _colours(
    *("#e4e7ea", "#59616a"),
    *("#77aadd", "#ff8866", "#66cc77", "#ee99cc", "#ddcc55", "#66ccee", "#dd77aa"),
    *("#77cc99", "#ffaa66", "#aa99ff", "#cccc66", "#55ccbb", "#dd9977", "#bbbbbb"),
)


def variables(colours: Mapping[str, str]) -> str:
    """As custom properties of a style sheet."""
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())
