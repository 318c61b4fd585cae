"""Colours of pages and charts, by the names that they are used by."""

from collections.abc import Mapping


def _numbered(name: str, *colours: str) -> dict[str, str]:
    return {f"{name}-{index}": colour for index, colour in enumerate(colours, start=1)}


# Of charts. Distinct from each other and from the paper (after Tol's bright and muted schemes).
LIGHT = {
    "paper": "#ffffff",
    "ink": "#1c2024",
    "faint": "#b8bfc6",
    **_numbered(
        "series",
        *("#4477aa", "#cc3311", "#228833", "#aa3377", "#997700", "#0077bb", "#882255"),
        *("#117733", "#c2571a", "#332288", "#7d7d1f", "#00857a", "#661100", "#555555"),
    ),
}
DARK = {
    "paper": "#15181b",
    "ink": "#e4e7ea",
    "faint": "#59616a",
    **_numbered(
        "series",
        *("#77aadd", "#ff8866", "#66cc77", "#ee99cc", "#ddcc55", "#66ccee", "#dd77aa"),
        *("#77cc99", "#ffaa66", "#aa99ff", "#cccc66", "#55ccbb", "#dd9977", "#bbbbbb"),
    ),
}
# A heat map has as many steps, the least one first.
STEPS = 6
# Of pages, in addition: text that stands back, links and bars, boxes, lines, heat.
LIGHT_PAGE = LIGHT | {
    "muted": "#59626b",
    "accent": "#0b6b61",
    "box": "#f4f6f7",
    "line": "#dde2e6",
    **_numbered("heat", "#f4f8fb", "#dceaf4", "#c3dbec", "#a9cbe4", "#8fbbdb", "#75a9d0"),
}
DARK_PAGE = DARK | {
    "muted": "#a3adb6",
    "accent": "#5fc9bb",
    "box": "#1e2327",
    "line": "#333a41",
    **_numbered("heat", "#1a2026", "#1d2b39", "#20374c", "#24435f", "#284f72", "#2c5b85"),
}


def variables(colours: Mapping[str, str]) -> str:
    """As custom properties of a style sheet."""
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours such as `#1c2024`, 1 to 21 (WCAG 2.2, relative luminance)."""
    lighter, darker = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: str) -> float:
    channels = (int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5))
    red, green, blue = (
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
